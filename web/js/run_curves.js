// One run's guidance: at each guided evaluation the similarities, how far the prediction was moved, what the guard did.

const STORED_POINTS = 300 // a workflow should not grow without bounds for its curves
const DIGITS = 6

export class RunCurves {
  constructor({ run = null, prompt = null, guided = true, steps = 0, window = [0, steps], terms = [], held_out = [] }) {
    Object.assign(this, { run, prompt, guided, steps, window, finished: false, stopped: false, final: null })
    this.curves = [...terms, ...held_out].map(({ name, role }) => ({ name, role, watched: false }))
    this.curves.slice(terms.length).forEach((curve) => (curve.watched = true))
    this.points = [] // { step, values: one a curve or null, displacement, stopped: samples, seconds }
    this.samples = 0
  }

  /** Take in evaluations as the scores JSON has them, averaged over the samples of a batch. */
  add({ evaluations = [], stopped: hasStopped = false }) {
    // A finished run's report has a list of samples there, which the guard stopped.
    this.stopped ||= hasStopped === true
    for (const { step, similarities, displacement_rms, stopped, seconds } of evaluations) {
      this.samples = displacement_rms.length
      this.points.push({
        step,
        values: this.means(similarities),
        displacement: mean(displacement_rms),
        stopped: stopped.filter(Boolean).length,
        seconds,
      })
    }
  }

  means(similarities) {
    return this.curves.map(({ name }) => mean(similarities[name]))
  }

  /** From a finished run's scores. */
  static ofReport(report, prompt) {
    const run = new RunCurves({ ...report, prompt })
    run.add(report)
    run.final = report.final ? run.means(report.final) : null
    run.finished = true
    return run
  }

  /** From what a workflow keeps; null if it is none. */
  static ofStored(stored) {
    if (stored?.version !== 1) return null
    return Object.assign(new RunCurves(stored), plain({ ...stored, version: undefined, node: undefined }))
  }

  /** What a workflow keeps. A run of very many evaluations keeps every nth. */
  toStored() {
    const { run, prompt, guided, steps, window, curves, samples, final, finished, stopped } = this
    const every = Math.ceil(this.points.length / STORED_POINTS)
    const points = this.points
      .filter((_, i) => i % every === 0)
      .map((point) => ({ ...point, values: point.values.map(short), displacement: short(point.displacement) }))
    const kept = { run, prompt, guided, steps, window: [...window], curves, samples, finished, stopped, points }
    return { version: 1, ...plain(kept), final: final && final.map(short) }
  }

  get hasEnded() {
    return this.finished || this.stopped
  }

  /** Nothing to show: the run was not guided. */
  get isNothing() {
    return !this.guided
  }

  /** Where each point stands on the axis of steps: several evaluations of a step side by side. */
  places() {
    const counts = new Map()
    for (const { step } of this.points) counts.set(step, (counts.get(step) ?? 0) + 1)
    const seen = new Map()
    return this.points.map(({ step }) => {
      const nth = seen.get(step) ?? 0
      seen.set(step, nth + 1)
      return step + (nth + 0.5) / counts.get(step)
    })
  }

  /** Index of the point at which the guard ended guidance for the first sample; -1 if it did not. */
  stop() {
    return this.points.findIndex((point) => point.stopped > 0)
  }
}

/** A copy: the page may make what it is given into something reactive. */
function plain(value) {
  return JSON.parse(JSON.stringify(value))
}

function mean(values) {
  const known = (values ?? []).filter((value) => value !== null)
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null
}

function short(value) {
  return value === null ? null : Number(value.toPrecision(DIGITS))
}
