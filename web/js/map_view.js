// The routing map as a DOM widget's element.

import { blockLabel, blocksOf, foldedAtFirst, rowsOf, shortName } from "./blocks.js"
import { ROW, labelsOf, paint, placeAt } from "./paint.js"
import { Panel, element } from "./panel.js"
import { STYLE, SUBJECT } from "./run_map.js"
import { inWords } from "./words.js"

const OPEN_HEIGHT = 210

export class MapView extends Panel {
  constructor(onResize) {
    super(inWords("Routing map"), OPEN_HEIGHT, onResize)
    this.folds = new Map() // block name -> folded, where the user has said so
    this.ofWeights = false
    this.kind = element("button", "lc-kind")
    this.kind.type = "button"
    this.kind.addEventListener("click", () => {
      this.ofWeights = !this.ofWeights
      this.draw()
    })
    this.legend.append(inWords("subject"), element("span", "lc-scale"), inWords("style"), this.kind)
  }

  /** Maps kept by earlier versions know the weights alone. */
  get showsWeights() {
    return this.ofWeights || !this.data.knowsContributions
  }

  isFolded = (block) => this.folds.get(block) ?? foldedAtFirst(this.data.layers)

  draw() {
    const map = this.data
    if (!map) return
    const share = map.share(this.showsWeights)
    this.kind.hidden = !map.knowsContributions
    this.kind.textContent = this.showsWeights ? inWords("weights") : inWords("what is drawn")
    this.kind.title = inWords("What is drawn: weights times what each LoRA does in the layer. Press for the other one.")
    const { steps } = map
    if (map.isNothing) return this.say(whyNothing(map))
    const reached = inWords("step {step} of {steps}", { step: map.columns.size, steps })
    const parts = [map.policy, map.finished ? inWords("{steps} steps", { steps }) : reached]
    if (map.stopped) parts.push(inWords("interrupted"))
    if (share !== null) parts.push(inWords("subject {share} %", { share: Math.round(share * 100) }))
    this.say(parts.join(" \u00b7 "))
    if (this.layers !== map.layers.length || this.drawnRun !== map.run) {
      this.blocks = blocksOf(map.layers).map((block) => ({ ...block, label: blockLabel(block.name) }))
      this.layers = map.layers.length
      this.drawnRun = map.run
    }
    this.rows = rowsOf(this.blocks, this.isFolded)
    this.size = this.fit(this.rows.length * ROW)
    if (!this.size) return
    paint(this.canvas, this.size, map, this.rows, this.colours(), this.focus, this.showsWeights)
    this.label(labelsOf(this.rows, this.size, this.isFolded))
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
      const hint = inWords("Point at the map: layer, weights, scores. \u25be folds a block.")
      this.detail.textContent = row ? inWords("not decided") : hint
      return
    }
    const { length } = row.layers
    const several = () => inWords("{block} ({count} layers)", { block: row.block.name, count: length })
    const pair = ([subject, style], digits) => `${digits(subject)} / ${digits(style)}`
    const values = {
      layer: length === 1 ? shortName(this.data.layers[row.layers[0]]) : several(),
      step: this.focus.step + 1,
      weights: pair(cell.weights, (v) => v.toFixed(2)),
    }
    const drawn = cell.contribution === null ? "" : ` \u00b7 ${inWords("subject draws {share} %", { share: Math.round(cell.contribution * 100) })}`
    if (cell.scores[SUBJECT] === null || cell.scores[STYLE] === null)
      this.detail.textContent = inWords("{layer}, step {step}: weights {weights}", values) + drawn
    else {
      values.scores = pair(cell.scores, (v) => v.toPrecision(2))
      this.detail.textContent = inWords("{layer}, step {step}: weights {weights}, scores {scores}", values) + drawn
    }
  }
}

/** Why the last run left no map. */
function whyNothing({ nothing, policy, stopped }) {
  if (stopped) return inWords("interrupted before anything was routed")
  const words = {
    merged: () => inWords("{policy} is merged before sampling, nothing is routed", { policy }),
    no_loras: () => inWords("no LoRAs, nothing is routed"),
    one_role: () => inWords("LoRAs of one role only, nothing is routed"),
    apart: () => inWords("no layer in common, nothing is routed"),
    no_run: () => inWords("no run is known of this latent"),
  }
  return (words[nothing] ?? (() => inWords("nothing was routed in this run")))()
}
