// The curves of metric guidance as a DOM widget's element.

import { MARKS, colourOf, nearest, paintCurves } from "./paint_curves.js"
import { Panel, element } from "./panel.js"

const OPEN_HEIGHT = 220

export class CurvesView extends Panel {
  constructor(onResize) {
    super("Guidance", OPEN_HEIGHT, onResize)
    this.legend.classList.add("lc-wraps")
  }

  draw() {
    const run = this.data
    if (!run) return
    this.say(statusOf(run))
    this.size = this.fit(0)
    if (!this.size) return
    const colours = this.colours()
    paintCurves(this.canvas, this.size, run, colours, this.focus)
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
    if (!run.guided) this.detail.textContent = "This node did not guide its last run."
    else if (this.focus === null) this.detail.textContent = "Similarities; below, how far each step moved the picture."
    else if (!point) this.detail.textContent = "finished picture"
    else {
      const moved = `moved ${(point.displacement ?? 0).toFixed(4)}`
      const stopped = point.stopped ? `, guard stopped ${point.stopped} of ${run.samples}` : ""
      this.detail.textContent = `step ${point.step + 1}: ${moved}, ${point.seconds.toFixed(2)} s${stopped}`
    }
  }
}

function statusOf(run) {
  if (!run.guided) return "off"
  const steps = new Set(run.points.map((point) => point.step)).size
  const now = (run.points.at(-1)?.step ?? 0) + 1
  const parts = [run.finished ? `${steps} of ${run.steps} steps guided` : `step ${now} of ${run.steps}`]
  const stop = run.stop()
  if (stop >= 0) parts.push(`guard stopped it at step ${run.points[stop].step + 1}`)
  if (run.samples > 1) parts.push(`mean of ${run.samples}`)
  return parts.join(" \u00b7 ")
}

/** "S_DINO_content" of the subject -> "subject, DINO" */
function labelOf({ name, role, watched }) {
  return watched ? `${role}, watched` : `${role}, ${name.split("_")[1] ?? name}`
}
