// One run's routing map: for each layer and step the weights and scores of subject and style, and who drew what.

import { decode, encode } from "./codes.js"

export const [SUBJECT, STYLE] = [0, 1]
const VALUES = 4 // of a cell: weight of subject and style, score of subject and style
// A workflow, and every picture that carries it, should not grow by more than this for a map.
const STORED_CHARACTERS = 48_000

export class RunMap {
  constructor({ run = null, prompt = null, steps = 0, policy = "", loras = [], layers = [], loudness = null, measured = false,
    finished = false, stopped = false, nothing = "" }) {
    Object.assign(this, { run, prompt, steps, policy, loras, measured, finished, stopped, nothing })
    this.layers = [...layers]
    // By layer, log ratio of the energies of subject's and style's files; null in maps that were kept before it was told.
    this.loudness = loudness && [...loudness]
    this.columns = new Map() // step -> numbers, VALUES a layer
  }

  /** Take in an event of the server; events come in order. */
  add(message) {
    this.layers.splice(message.first_layer, Infinity, ...message.layers)
    if (message.loudness) (this.loudness ??= []).splice(message.first_layer, Infinity, ...message.loudness)
    this.measured = message.measured ?? this.measured
    this.policy = message.policy ?? this.policy
    this.loras = message.loras ?? this.loras
    for (const [step, text] of Object.entries(message.columns)) this.columns.set(Number(step), decode(text))
    this.finished ||= message.finished
    this.stopped ||= message.stopped ?? false
    this.nothing = message.nothing ?? this.nothing
  }

  get hasEnded() {
    return this.finished || this.stopped
  }

  /** The run routed nothing, or was stopped before it did. */
  get isNothing() {
    return this.hasEnded && !this.layers.length
  }

  /** From a routing record, as RoutingReport gives it. */
  static ofRecord(record, prompt) {
    const { steps, layers, loras, loudness, measured, title: policy, nothing } = record
    const map = new RunMap({ prompt, steps, layers, loras, loudness, measured, policy, nothing, finished: true })
    const tables = [...record.weights, ...record.scores]
    for (let step = 0; step < (layers.length && steps); step++) {
      const column = layers.flatMap((_, layer) => tables.map((table) => table[layer][step] ?? NaN))
      map.columns.set(step, Float64Array.from(column))
    }
    return map
  }

  /** From what a workflow keeps; null if it is none. */
  static ofStored(stored) {
    if (stored?.version !== 1) return null
    const map = new RunMap(stored)
    for (const [step, text] of Object.entries(stored.columns)) map.columns.set(Number(step), decode(text))
    return map
  }

  /** What a workflow keeps. A map too large for it keeps every nth step. */
  toStored() {
    const { run, prompt, steps, policy, loras, layers, measured, finished, stopped, nothing } = this
    const room = Math.max(2, Math.floor(STORED_CHARACTERS / (layers.length * VALUES * 2 || 1)))
    const every = Math.ceil(this.columns.size / room)
    const kept = [...this.columns].sort(([a], [b]) => a - b).filter((_, i) => i % every === 0)
    const columns = Object.fromEntries(kept.map(([step, values]) => [step, encode(values)]))
    const ended = { finished, stopped, nothing }
    const loudness = this.loudness && this.loudness.map((ratio) => Math.round(ratio * 100) / 100)
    return { version: 1, run, prompt, steps, policy, loras, layers: [...layers], loudness, measured, ...ended, columns }
  }

  /** Whether it is known who drew what. */
  get knowsContributions() {
    return this.loudness !== null && this.loudness.length === this.layers.length
  }

  /** Weights, scores, and the subject's share of both the weights and what is added; of some layers at a step, on
   * average; null where nothing is known. */
  cell(layers, step) {
    const column = this.columns.get(step)
    if (!column) return null
    const sums = [0, 0, 0, 0]
    const counts = [0, 0, 0, 0]
    const drawn = []
    for (const layer of layers) {
      for (let i = 0; i < VALUES; i++) {
        const value = column[layer * VALUES + i]
        if (value === undefined || Number.isNaN(value)) continue
        sums[i] += value
        counts[i] += 1
      }
      const contribution = this.contribution(column, layer)
      if (!Number.isNaN(contribution)) drawn.push(contribution)
    }
    if (!counts[SUBJECT] || !counts[STYLE]) return null
    const [subject, style, subjectScore, styleScore] = sums.map((sum, i) => (counts[i] ? sum / counts[i] : null))
    const weightShare = shareOf(subject, style)
    const contribution = drawn.length ? drawn.reduce((sum, each) => sum + each) / drawn.length : null
    return { weights: [subject, style], scores: [subjectScore, styleScore], weightShare, contribution }
  }

  /** Subject's share of what is added in a layer: weights squared times energies. NaN where it is not known. */
  contribution(column, layer) {
    if (!this.knowsContributions) return NaN
    const [subject, style, subjectScore, styleScore] = column.subarray(layer * VALUES, (layer + 1) * VALUES)
    const isMeasured = this.measured && subjectScore > 0 && styleScore > 0
    const loudness = isMeasured ? Math.log(subjectScore / styleScore) : this.loudness[layer]
    return shareOf(subject ** 2 * Math.exp(loudness / 2), style ** 2 * Math.exp(-loudness / 2))
  }

  /** Subject's share over everything that is known, of what is added or of the weights; null if nothing is. */
  share(ofWeights = !this.knowsContributions) {
    let sum = 0
    let count = 0
    for (const column of this.columns.values()) {
      for (let layer = 0; layer * VALUES < column.length; layer++) {
        const at = layer * VALUES
        const share = ofWeights ? shareOf(column[at], column[at + 1]) : this.contribution(column, layer)
        if (Number.isNaN(share)) continue
        sum += share
        count += 1
      }
    }
    return count ? sum / count : null
  }
}

function shareOf(subject, style) {
  const both = subject + style
  return both > 0 ? subject / both : Number.isNaN(both) ? NaN : 0.5
}
