// The curves of metric guidance as a DOM widget's element.

import { MARKS, colourOf, nearest, paintCurves } from "./paint_curves.js"
import { Panel, element } from "./panel.js"
import { inWords } from "./words.js"

const OPEN_HEIGHT = 220

export class CurvesView extends Panel {
  constructor(onResize) {
    super(inWords("Guidance"), OPEN_HEIGHT, onResize)
    this.legend.classList.add("lc-wraps")
  }

  draw() {
    const run = this.data
    if (!run) return
    this.say(statusOf(run))
    this.size = this.fit(0)
    if (!this.size) return
    const colours = this.colours()
    this.label(paintCurves(this.canvas, this.size, run, colours, this.focus))
    this.tell(colours)
  }

  point(event) {
    this.focus = event && this.size ? nearest(event.offsetX, this.size, this.data) : null
    this.canvas.style.cursor = "crosshair"
    this.draw()
  }

  /** The values under the pointer, or the newest. */
  tell(colours) {
    const run = this.data
    const last = run.final ? run.points.length : run.points.length - 1
    const shown = this.focus ?? last
    const point = run.points[shown]
    const values = shown === run.points.length ? run.final : point?.values
    const entries = run.curves.map((curve, i) => {
      const mark = element("span", "", MARKS[curve.watched ? "watched" : curve.role] ?? MARKS.other)
      mark.style.color = colourOf(curve, colours)
      const value = values?.[i] ?? null
      return element("span", "lc-curve", mark, ` ${labelOf(curve)} ${value === null ? "\u2013" : value.toFixed(4)}`)
    })
    this.legend.replaceChildren(...entries)
    this.detail.textContent = this.said(point)
  }

  /** What the line under the legend says, of the point under the pointer if there is one. */
  said(point) {
    const { samples } = this.data
    if (this.focus === null) return inWords("Similarities; below, how far each step moved the picture.")
    if (!point) return inWords("finished picture")
    const { stopped } = point
    const values = {
      step: point.step + 1,
      distance: (point.displacement ?? 0).toFixed(4),
      seconds: point.seconds.toFixed(2),
    }
    if (!stopped) return inWords("step {step}: moved {distance}, {seconds} s", values)
    const guarded = { ...values, stopped, samples }
    return inWords("step {step}: moved {distance}, {seconds} s, guard stopped {stopped} of {samples}", guarded)
  }
}

function statusOf(run) {
  if (!run.guided) return inWords("This node did not guide its last run.")
  const { steps, samples } = run
  const guided = new Set(run.points.map((point) => point.step)).size
  const step = (run.points.at(-1)?.step ?? 0) + 1
  const reached = inWords("step {step} of {steps}", { step, steps })
  const parts = [run.finished ? inWords("{guided} of {steps} steps guided", { guided, steps }) : reached]
  const stop = run.stop()
  if (stop >= 0) parts.push(inWords("guard stopped it at step {step}", { step: run.points[stop].step + 1 }))
  if (run.stopped) parts.push(inWords("interrupted"))
  if (samples > 1) parts.push(inWords("mean of {samples}", { samples }))
  return parts.join(" \u00b7 ")
}

/** "S_DINO_content" of the subject -> "subject, DINO" */
function labelOf({ name, role, watched }) {
  return `${inWords(role)}, ${watched ? inWords("watched") : (name.split("_")[1] ?? name)}`
}
