// Numbers as text, two characters each. The same rule as host/map_codes.py: 0 is "not decided", 1 is zero, and above
// that stands a logarithm, to within half a percent.

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
const LEAST = -40
const PER_OCTAVE = 75
const ZERO = 1
const FIRST = 2
const LAST = 4095
const INDEX = new Map([...ALPHABET].map((character, i) => [character, i]))

/** Text to an array of numbers; NaN where nothing was decided. */
export function decode(text) {
  const values = new Float64Array(text.length / 2)
  for (let i = 0; i < values.length; i++) {
    const code = INDEX.get(text[2 * i]) * 64 + INDEX.get(text[2 * i + 1])
    values[i] = code < ZERO ? NaN : code === ZERO ? 0 : 2 ** ((code - FIRST) / PER_OCTAVE + LEAST)
  }
  return values
}

/** Non-negative numbers, or NaN, to text. */
export function encode(values) {
  let text = ""
  for (const value of values) {
    let code = 0
    if (value <= 0) code = ZERO
    else if (!Number.isNaN(value)) {
      const level = Math.round((Math.log2(value) - LEAST) * PER_OCTAVE) + FIRST
      code = Math.min(LAST, Math.max(FIRST, level))
    }
    text += ALPHABET[code >> 6] + ALPHABET[code & 63]
  }
  return text
}
