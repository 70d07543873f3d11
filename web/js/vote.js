// A blind vote: pictures of the same seed by what was fused and by a rival, which are judged, and what came of it.

export const OURS = "ours"
export const RIVALS = ["stacked", "subject", "style", "base"]
export const NEITHER = "neither"
const [MOST_SETUPS, MOST_VOTES, MOST_PAIRS] = [8, 400, 64] // a workflow should not grow without bounds
const ID = /^[0-9a-f]{12}$/
const FILE = /^lora_conductor_[0-9a-f]{32}\.png$/

export class Vote {
  /**
   * setup: which votes count together. pairs: { id, seed, pictures: { kind: name of a temporary file } }.
   * votes: setup -> rival -> id of a pair -> who won, the newest last.
   */
  constructor({ prompt = null, setup = "", policy = "", pairs = [], rival = RIVALS[0], votes = new Map() }) {
    Object.assign(this, { prompt, setup, policy, pairs, rival, votes, hasEnded: true })
  }

  /** From a node's output; null if it is none. */
  static ofBallot(ballot, prompt) {
    if (!ID.test(ballot?.setup) || !Array.isArray(ballot.pairs)) return null
    return new Vote({ prompt, setup: ballot.setup, policy: String(ballot.policy), pairs: ballot.pairs.filter(isPair) })
  }

  /** From what a workflow keeps, which may come from anybody; null if it is none. */
  static ofStored(stored) {
    const vote = stored?.version === 1 && Vote.ofBallot(stored, stored.prompt ?? null)
    if (!vote) return null
    if (RIVALS.includes(stored.rival)) vote.rival = stored.rival
    for (const [setup, rivals] of entries(stored.votes)) {
      for (const [rival, votes] of entries(rivals)) {
        if (!ID.test(setup) || !RIVALS.includes(rival)) continue
        const winners = [OURS, rival, NEITHER]
        for (const [id, winner] of entries(votes))
          if (ID.test(id) && winners.includes(winner)) vote.cast(id, winner, setup, rival)
      }
    }
    return vote
  }

  toStored() {
    const { prompt, setup, policy, rival } = this
    const plain = (map) => Object.fromEntries([...map].map(([key, value]) => [key, value instanceof Map ? plain(value) : value]))
    return { version: 1, prompt, setup, policy, rival, pairs: this.pairs.slice(0, MOST_PAIRS), votes: plain(this.votes) }
  }

  /** The same pictures, with the votes and the rival of the data that was there before. */
  after(before) {
    if (before) Object.assign(this, { votes: before.votes, rival: before.rival })
    return this
  }

  /** id of a pair -> who won, of this setup against this rival. */
  judged(setup = this.setup, rival = this.rival) {
    return this.votes.get(setup)?.get(rival) ?? new Map()
  }

  /** The pairs that nobody has voted on. */
  get open() {
    return this.pairs.filter(({ id }) => !this.judged().has(id))
  }

  cast(id, winner, setup = this.setup, rival = this.rival) {
    const rivals = this.votes.get(setup) ?? new Map()
    const votes = rivals.get(rival) ?? new Map()
    this.votes.delete(setup) // and in again, as the newest
    this.votes.set(setup, rivals.set(rival, votes.set(id, winner)))
    if (votes.size > MOST_VOTES) votes.delete(votes.keys().next().value)
    if (this.votes.size > MOST_SETUPS) this.votes.delete(this.votes.keys().next().value)
  }

  /** Forget the votes of this setup against this rival. */
  reset() {
    this.votes.get(this.setup)?.delete(this.rival)
  }

  /** How many went to whom, and the two-sided p of the sign test, which leaves out those that went to neither. */
  tally() {
    const winners = [...this.judged().values()]
    const [ours, theirs] = [OURS, this.rival].map((name) => winners.filter((winner) => winner === name).length)
    return { ours, theirs, neither: winners.length - ours - theirs, p: signTest(ours, theirs) }
  }
}

/** How likely so uneven a count is, or one more uneven, where either side wins by the toss of a coin. */
export function signTest(one, other) {
  const count = one + other
  let chance = 0.5 ** count // of k wins, from k = 0 on
  let sum = 0
  for (let k = 0; k <= Math.min(one, other); k++) {
    sum += chance
    chance *= (count - k) / (k + 1)
  }
  return Math.min(1, 2 * sum)
}

function isPair(pair) {
  const { id, seed, pictures } = pair ?? {}
  return ID.test(id) && Number.isFinite(seed) && [OURS, ...RIVALS].every((kind) => FILE.test(pictures?.[kind]))
}

function entries(object) {
  return object && typeof object === "object" ? Object.entries(object) : []
}
