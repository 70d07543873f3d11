// One run's routing map: for each layer and step the weights and scores of subject and style.

import { decode, encode } from "./codes.js"

export const [SUBJECT, STYLE] = [0, 1]
const VALUES = 4 // of a cell: weight of subject and style, score of subject and style
// A workflow, and every picture that carries it, should not grow by more than this for a map.
const STORED_CHARACTERS = 48_000

export class RunMap {
  constructor({ run = null, prompt = null, steps = 0, policy = "", loras = [], layers = [], finished = false, stopped = false, nothing = "" }) {
    Object.assign(this, { run, prompt, steps, policy, loras, finished, stopped, nothing })
    this.layers = [...layers]
    this.columns = new Map() // step -> numbers, VALUES a layer
  }

  /** Take in an event of the server; events come in order. */
  add(message) {
    this.layers.splice(message.first_layer, Infinity, ...message.layers)
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
    const { steps, layers, loras, title: policy, nothing } = record
    const map = new RunMap({ prompt, steps, layers, loras, policy, nothing, finished: true })
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
    const { run, prompt, steps, policy, loras, layers, finished, stopped, nothing } = this
    const room = Math.max(2, Math.floor(STORED_CHARACTERS / (layers.length * VALUES * 2 || 1)))
    const every = Math.ceil(this.columns.size / room)
    const kept = [...this.columns].sort(([a], [b]) => a - b).filter((_, i) => i % every === 0)
    const columns = Object.fromEntries(kept.map(([step, values]) => [step, encode(values)]))
    const ended = { finished, stopped, nothing }
    return { version: 1, run, prompt, steps, policy, loras, layers: [...layers], ...ended, columns }
  }

  /** Weights and scores of some layers at a step, on average; null where nothing is known. */
  cell(layers, step) {
    const column = this.columns.get(step)
    if (!column) return null
    const sums = [0, 0, 0, 0]
    const counts = [0, 0, 0, 0]
    for (const layer of layers) {
      for (let i = 0; i < VALUES; i++) {
        const value = column[layer * VALUES + i]
        if (value === undefined || Number.isNaN(value)) continue
        sums[i] += value
        counts[i] += 1
      }
    }
    if (!counts[SUBJECT] || !counts[STYLE]) return null
    const [subject, style, subjectScore, styleScore] = sums.map((sum, i) => (counts[i] ? sum / counts[i] : null))
    return { weights: [subject, style], scores: [subjectScore, styleScore], share: shareOf(subject, style) }
  }

  /** Subject's share over everything that is known; null if nothing is. */
  share() {
    let sum = 0
    let count = 0
    for (const column of this.columns.values()) {
      for (let i = 0; i < column.length; i += VALUES) {
        const share = shareOf(column[i], column[i + 1])
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
