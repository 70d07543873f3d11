// Curves over steps: similarities above, how far each guided step moved the picture below, the window shaded.

import { inWords } from "./words.js"

const LEFT = 34 // numbers of the upper axis
const RIGHT = 10
const STEPS = 13 // names of steps, at the bottom
const STRIP = 0.24 // of the height: displacement
const GAP = 6
const HALF_LINE = 5 // of a label
const SIZE = 3.2 // of a mark

/** Shape as well as colour says which curve it is. */
export const MARKS = { subject: "\u25cf", style: "\u25a0", watched: "\u25b2", other: "\u25c6" }

export function colourOf(curve, colours) {
  if (curve.watched) return colours.faint
  return { subject: colours.subject, style: colours.style }[curve.role] ?? colours.other
}

/** Index of the evaluation nearest to a place across, one past the last for the finished picture; null if none is. */
export function nearest(x, size, run) {
  const places = placesOf(run)
  if (!places.length) return null
  const across = acrossOf(size, run)
  const far = places.map((place) => Math.abs(across(place) - x))
  return far.indexOf(Math.min(...far))
}

function placesOf(run) {
  return run.final ? [...run.places(), run.steps] : run.places()
}

function acrossOf(size, run) {
  const width = size.width - LEFT - RIGHT
  return (place) => LEFT + (place / Math.max(1, run.steps)) * width
}

/** Paint it all; `size` is in CSS pixels, `focus` as `nearest` gives it. Returns what to label, for Panel.label. */
export function paintCurves(canvas, size, run, colours, focus) {
  const context = canvas.getContext("2d")
  const scale = canvas.width / size.width
  context.setTransform(scale, 0, 0, scale, 0, 0)
  context.clearRect(0, 0, size.width, size.height)
  const bottom = size.height - STEPS
  const strip = { top: bottom - STRIP * size.height, bottom }
  const plot = { top: GAP, bottom: strip.top - GAP }
  const across = acrossOf(size, run)
  const places = placesOf(run)
  paintWindow(context, run, across, bottom, colours)
  paintAxes(context, size, run, plot, strip, colours)
  paintDisplacement(context, run, across, strip, colours)
  const [low, high] = rangeOf(run)
  const up = (value) => plot.bottom - ((value - low) / (high - low)) * (plot.bottom - plot.top)
  run.curves.forEach((curve, i) => {
    const values = [...run.points.map((point) => point.values[i]), ...(run.final ? [run.final[i]] : [])]
    paintCurve(context, curve, values, places.map(across), up, colours)
  })
  paintStop(context, run, across, bottom, colours)
  if (focus !== null && places[focus] !== undefined) {
    context.strokeStyle = colours.text
    context.lineWidth = 1
    verticalLine(context, across(places[focus]), 0, bottom)
  }
  return labelsOf(size, run, plot, strip, [low, high], across)
}

function labelsOf(size, run, plot, strip, [low, high], across) {
  const number = (value, y) => ({ text: value.toFixed(2), x: LEFT - 4, y, ends: true, faint: true })
  const y = size.height - HALF_LINE
  const labels = [
    { text: inWords("step {step}", { step: 1 }), x: LEFT, y, faint: true },
    { text: String(run.steps), x: size.width - RIGHT, y, ends: true, faint: true },
    number(high, plot.top),
    number(low, plot.bottom - HALF_LINE + 2),
    number(most(run), strip.top + HALF_LINE - 2),
  ]
  const stop = run.stop()
  if (stop < 0) return labels
  const x = across(run.places()[stop])
  const ends = x > LEFT + 60
  return [...labels, { text: inWords("guard"), x: x + (ends ? -3 : 3), y: HALF_LINE, ends }]
}

/** The largest displacement. */
function most(run) {
  return Math.max(...run.points.map((point) => point.displacement ?? 0), 0)
}

function rangeOf(run) {
  const all = [...run.points.flatMap((point) => point.values), ...(run.final ?? [])].filter((value) => value !== null)
  if (!all.length) return [0, 1]
  const [low, high] = [Math.min(...all), Math.max(...all)]
  const room = Math.max(0.1 * (high - low), 0.005)
  return [low - room, high <= 1 ? Math.min(1, high + room) : high + room] // a cosine ends at 1
}

function paintWindow(context, run, across, bottom, colours) {
  if (!run.guided) return
  context.globalAlpha = 0.3
  context.fillStyle = colours.even
  const [from, to] = run.window.map(across)
  context.fillRect(from, 0, to - from, bottom)
  context.globalAlpha = 1
}

function paintAxes(context, size, run, plot, strip, colours) {
  context.strokeStyle = colours.even
  context.lineWidth = 1
  for (const y of [plot.bottom, strip.bottom]) {
    context.beginPath()
    context.moveTo(LEFT, y)
    context.lineTo(size.width - RIGHT, y)
    context.stroke()
  }
}

function paintDisplacement(context, run, across, strip, colours) {
  const top = most(run)
  if (top <= 0) return
  context.fillStyle = colours.faint
  const width = Math.max(1.5, (across(1) - across(0)) * 0.5)
  run.places().forEach((place, i) => {
    const height = ((run.points[i].displacement ?? 0) / top) * (strip.bottom - strip.top)
    context.fillRect(across(place) - width / 2, strip.bottom - height, width, height)
  })
}

function paintCurve(context, curve, values, xs, up, colours) {
  context.strokeStyle = context.fillStyle = colourOf(curve, colours)
  context.lineWidth = 1.6
  context.setLineDash(curve.watched ? [4, 3] : [])
  context.beginPath()
  let isOn = false // nothing is known of a skipped evaluation: the line has a gap there
  values.forEach((value, i) => {
    if (value === null) isOn = false
    else {
      context[isOn ? "lineTo" : "moveTo"](xs[i], up(value))
      isOn = true
    }
  })
  context.stroke()
  context.setLineDash([])
  values.forEach((value, i) => {
    if (value !== null) paintMark(context, curve, xs[i], up(value))
  })
}

function paintMark(context, curve, x, y) {
  context.beginPath()
  if (curve.watched) {
    context.moveTo(x, y - SIZE)
    context.lineTo(x + SIZE, y + SIZE)
    context.lineTo(x - SIZE, y + SIZE)
  } else if (curve.role === "style") context.rect(x - SIZE + 0.4, y - SIZE + 0.4, 2 * SIZE - 0.8, 2 * SIZE - 0.8)
  else if (curve.role === "subject") context.arc(x, y, SIZE, 0, 2 * Math.PI)
  else {
    context.moveTo(x, y - SIZE)
    context.lineTo(x + SIZE, y)
    context.lineTo(x, y + SIZE)
    context.lineTo(x - SIZE, y)
  }
  context.fill()
}

function paintStop(context, run, across, bottom, colours) {
  const stop = run.stop()
  if (stop < 0) return
  const x = across(run.places()[stop])
  context.strokeStyle = colours.text
  context.setLineDash([2, 2])
  verticalLine(context, x, 0, bottom)
  context.setLineDash([])
}

function verticalLine(context, x, top, bottom) {
  context.beginPath()
  context.moveTo(x, top)
  context.lineTo(x, bottom)
  context.stroke()
}
