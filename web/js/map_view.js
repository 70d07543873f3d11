// The routing map as a DOM widget's element.

import { blockLabel, blocksOf, foldedAtFirst, rowsOf, shortName } from "./blocks.js"
import { ROW, paint, placeAt } from "./paint.js"
import { Panel, element } from "./panel.js"
import { STYLE, SUBJECT } from "./run_map.js"

const OPEN_HEIGHT = 210

export class MapView extends Panel {
  constructor(onResize) {
    super("Routing map", OPEN_HEIGHT, onResize)
    this.folds = new Map() // block name -> folded, where the user has said so
    this.legend.append("subject", element("span", "lc-scale"), "style")
  }

  isFolded = (block) => this.folds.get(block) ?? foldedAtFirst(this.data.layers)

  draw() {
    const map = this.data
    if (!map) return
    const share = map.share()
    const parts = [map.policy, map.finished ? `${map.steps} steps` : `step ${map.columns.size} of ${map.steps}`]
    if (share !== null) parts.push(`subject ${Math.round(share * 100)} %`)
    this.say(parts.join(" \u00b7 "))
    if (this.layers !== map.layers.length || this.drawnRun !== map.run) {
      this.blocks = blocksOf(map.layers).map((block) => ({ ...block, label: blockLabel(block.name) }))
      this.layers = map.layers.length
      this.drawnRun = map.run
    }
    this.rows = rowsOf(this.blocks, this.isFolded)
    this.size = this.fit(this.rows.length * ROW)
    if (!this.size) return
    paint(this.canvas, this.size, map, this.rows, this.colours(), this.focus, this.isFolded)
    this.tell()
  }

  point(event) {
    // offsetX and offsetY are the element's own pixels, however far the graph is zoomed.
    const at = event && this.size && placeAt(event.offsetX, event.offsetY, this.size, this.data, this.rows)
    this.focus = at && at.step !== null ? at : null
    this.canvas.style.cursor = at && at.step === null ? "pointer" : "crosshair"
    this.draw()
  }

  press(event) {
    const at = this.size && placeAt(event.offsetX, event.offsetY, this.size, this.data, this.rows)
    if (at?.step !== null) return super.press(event)
    event.stopPropagation()
    const { name } = this.rows[at.row].block
    this.folds.set(name, !this.isFolded(name))
    this.draw()
  }

  /** What is under the pointer, in words. */
  tell() {
    const row = this.focus && this.rows[this.focus.row]
    const cell = row && this.data.cell(row.layers, this.focus.step)
    if (!cell) {
      this.detail.textContent = row ? "not decided" : "Point at the map: layer, weights, scores. \u25be folds a block."
      return
    }
    const one = row.layers.length === 1
    const name = one ? shortName(this.data.layers[row.layers[0]]) : `${row.block.name} (${row.layers.length} layers)`
    const pair = ([subject, style], digits) => `${digits(subject)} / ${digits(style)}`
    let text = `${name}, step ${this.focus.step + 1}: weights ${pair(cell.weights, (v) => v.toFixed(2))}`
    if (cell.scores[SUBJECT] !== null && cell.scores[STYLE] !== null)
      text += `, scores ${pair(cell.scores, (v) => v.toPrecision(2))}`
    this.detail.textContent = text
  }
}
