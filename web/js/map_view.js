// The routing map as a DOM widget's element: headline, map, legend, and what is under the pointer.

import { blockLabel, blocksOf, foldedAtFirst, rowsOf, shortName } from "./blocks.js"
import { ROW, paint, placeAt } from "./paint.js"
import { STYLE, SUBJECT } from "./run_map.js"

const OPEN_HEIGHT = 210
const SHUT_HEIGHT = 28
const SHARPNESS = 2 // canvas pixels a CSS pixel, at least: the graph may be zoomed in

// Orange and blue: told apart with every common kind of colour blindness, on dark and on light.
const CSS = `
.lora-conductor-map { --lc-subject: #f28e1c; --lc-style: #2f7fe0; display: flex; flex-direction: column; gap: 3px;
  width: 100%; height: 100%; box-sizing: border-box; overflow: hidden; padding: 4px 6px; border-radius: 6px;
  background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); font: 11px/14px sans-serif;
  user-select: none; }
.lora-conductor-map > * { flex: none; }
.lora-conductor-map .lc-head { all: unset; cursor: pointer; display: flex; gap: 6px; white-space: nowrap;
  overflow: hidden; line-height: 18px; }
.lora-conductor-map .lc-head:focus-visible { outline: 1px solid currentColor; }
.lora-conductor-map .lc-status { overflow: hidden; text-overflow: ellipsis; color: var(--descrip-text, #999); }
.lora-conductor-map .lc-scroll { flex: 1 1 0; min-height: 0; overflow: hidden auto; position: relative; }
.lora-conductor-map canvas { display: block; position: absolute; inset: 0 auto auto 0; touch-action: manipulation; }
.lora-conductor-map .lc-legend { display: flex; align-items: center; gap: 5px; white-space: nowrap; }
.lora-conductor-map .lc-scale { flex: 1; height: 7px; border-radius: 2px; opacity: .95;
  background: linear-gradient(to right, var(--lc-subject), var(--border-color, #666), var(--lc-style)); }
.lora-conductor-map .lc-detail { height: 28px; overflow: hidden; color: var(--descrip-text, #999); }
.lora-conductor-map.lc-shut > :not(.lc-head):not(style) { display: none; }
`

function element(kind, className, ...children) {
  const made = document.createElement(kind)
  made.className = className
  made.append(...children)
  return made
}

export class MapView {
  constructor(onResize) {
    this.map = null
    this.open = true
    this.focus = null
    this.folds = new Map() // block name -> folded, where the user has said so
    this.onResize = onResize
    this.arrow = element("span", "lc-arrow")
    this.status = element("span", "lc-status")
    this.head = element("button", "lc-head", this.arrow, element("span", "", "Routing map"), this.status)
    this.head.type = "button"
    this.canvas = element("canvas", "")
    this.canvas.setAttribute("role", "img")
    this.scroll = element("div", "lc-scroll", this.canvas)
    this.detail = element("div", "lc-detail")
    const scale = element("span", "lc-scale")
    const legend = element("div", "lc-legend", "subject", scale, "style")
    const style = element("style", "", CSS)
    this.root = element("div", "lora-conductor-map", style, this.head, this.scroll, legend, this.detail)
    this.head.addEventListener("click", () => this.toggle())
    this.canvas.addEventListener("pointermove", (event) => this.point(event))
    this.canvas.addEventListener("pointerdown", (event) => this.press(event))
    this.canvas.addEventListener("pointerleave", () => this.point(null))
    this.scroll.addEventListener("wheel", (event) => this.keepWheel(event), { passive: true })
    this.observer = new ResizeObserver(() => this.draw())
    this.observer.observe(this.scroll)
    this.root.style.minHeight = `${this.height}px`
  }

  get height() {
    return this.open ? OPEN_HEIGHT : SHUT_HEIGHT
  }

  show(map) {
    if (map.run !== this.map?.run || map.run === null) this.focus = null
    this.map = map
    this.draw()
  }

  remove() {
    this.observer.disconnect()
  }

  toggle() {
    this.open = !this.open
    this.root.classList.toggle("lc-shut", !this.open)
    this.root.style.minHeight = `${this.height}px`
    this.draw()
    this.onResize()
  }

  isFolded = (block) => this.folds.get(block) ?? foldedAtFirst(this.map.layers)

  draw() {
    const { map } = this
    if (!map) return
    this.arrow.textContent = this.open ? "\u25be" : "\u25b8"
    const share = map.share()
    const parts = [map.policy, map.finished ? `${map.steps} steps` : `step ${map.columns.size} of ${map.steps}`]
    if (share !== null) parts.push(`subject ${Math.round(share * 100)} %`)
    this.status.textContent = parts.join(" \u00b7 ")
    this.canvas.setAttribute("aria-label", `Routing map: ${this.status.textContent}`)
    if (this.layers !== map.layers.length || this.drawnRun !== map.run) {
      this.blocks = blocksOf(map.layers).map((block) => ({ ...block, label: blockLabel(block.name) }))
      this.layers = map.layers.length
      this.drawnRun = map.run
    }
    this.rows = rowsOf(this.blocks, this.isFolded)
    const box = this.scroll
    if (!this.open || !box.clientWidth || !box.clientHeight) return
    this.size = { width: box.clientWidth, height: Math.max(box.clientHeight, this.rows.length * ROW) }
    this.fitCanvas()
    paint(this.canvas, this.size, map, this.rows, this.colours(), this.focus, this.isFolded)
    this.tell()
  }

  fitCanvas() {
    const { width, height } = this.size
    const sharpness = Math.max(SHARPNESS, globalThis.devicePixelRatio || 1)
    const wanted = [Math.round(width * sharpness), Math.round(height * sharpness)]
    if (this.canvas.width === wanted[0] && this.canvas.height === wanted[1]) return
    Object.assign(this.canvas, { width: wanted[0], height: wanted[1] })
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` })
  }

  /** Of the theme, as it is now. */
  colours() {
    const of = (name, otherwise) => getComputedStyle(this.root).getPropertyValue(name).trim() || otherwise
    return {
      subject: of("--lc-subject", "orange"),
      style: of("--lc-style", "blue"),
      even: of("--border-color", "#666"),
      line: of("--comfy-input-bg", "#222"),
      text: of("--input-text", "#ddd"),
    }
  }

  point(event) {
    // offsetX and offsetY are the element's own pixels, however far the graph is zoomed.
    const at = event && this.size && placeAt(event.offsetX, event.offsetY, this.size, this.map, this.rows)
    this.focus = at && at.step !== null ? at : null
    this.canvas.style.cursor = at && at.step === null ? "pointer" : "crosshair"
    this.draw()
  }

  press(event) {
    event.stopPropagation() // the node would be dragged
    const at = placeAt(event.offsetX, event.offsetY, this.size, this.map, this.rows)
    if (at?.step !== null) return this.point(event)
    const { name } = this.rows[at.row].block
    this.folds.set(name, !this.isFolded(name))
    this.draw()
  }

  /** The wheel scrolls a map that is longer than its place, instead of zooming the graph. */
  keepWheel(event) {
    if (this.scroll.scrollHeight > this.scroll.clientHeight) event.stopPropagation()
  }

  /** What is under the pointer, in words. */
  tell() {
    const row = this.focus && this.rows[this.focus.row]
    const cell = row && this.map.cell(row.layers, this.focus.step)
    if (!cell) {
      this.detail.textContent = row ? "not decided" : "Point at the map: layer, weights, scores. \u25be folds a block."
      return
    }
    const one = row.layers.length === 1
    const name = one ? shortName(this.map.layers[row.layers[0]]) : `${row.block.name} (${row.layers.length} layers)`
    const pair = ([subject, style], digits) => `${digits(subject)} / ${digits(style)}`
    let text = `${name}, step ${this.focus.step + 1}: weights ${pair(cell.weights, (v) => v.toFixed(2))}`
    if (cell.scores[SUBJECT] !== null && cell.scores[STYLE] !== null)
      text += `, scores ${pair(cell.scores, (v) => v.toPrecision(2))}`
    this.detail.textContent = text
  }
}
