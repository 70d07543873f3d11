// What runs give to nodes: come in by events, kept with the workflow, shown by a widget once there is something.

import { changing, changingForGood, isUndoing, nodeOfExecution, placeOf, rootGraph } from "./graph.js"

const MARGIN = 10 // that the page leaves around a widget's element on the canvas

/**
 * One kind of widget, on all nodes that have it. Its data has toStored(), and after(data) where something of the data
 * before is to stay; its view has root, height and show(data), and calls onChange when the user has changed the data.
 */
export class KeptWidgets {
  constructor({ name, makeView, ofStored }) {
    Object.assign(this, { name, makeView, ofStored, property: `lora_conductor.${name}` })
    this.views = new WeakMap() // node -> its view
    this.newest = new Map() // place of a node -> its newest data; outlives the node objects, which an undo makes anew
    this.elsewhere = new Map() // workflow -> { execution id -> data } that came in while another workflow was open
  }

  /** Have nodes of these classes show what they have, and let go of it when they are removed. */
  attach(node, classes) {
    if (!classes.includes(node.comfyClass)) return
    const kept = this
    const { onConfigure, onAdded, onRemoved } = node
    node.onConfigure = function (...given) {
      onConfigure?.apply(this, given)
      if (this.graph) kept.restore(this)
    }
    // A copy is made with the number of its original, and has its own only when it is in the graph.
    node.onAdded = function (...given) {
      onAdded?.apply(this, given)
      kept.restore(this)
    }
    node.onRemoved = function (...given) {
      onRemoved?.apply(this, given)
      kept.views.get(this)?.remove()
      kept.views.delete(this)
    }
  }

  /** Take in data for a node of a workflow, which may not be the open one. */
  give(workflow, id, classes, data, { save }) {
    if (workflow && workflow !== rootGraph()?.id) {
      if (!this.elsewhere.has(workflow)) this.elsewhere.set(workflow, new Map())
      this.elsewhere.get(workflow).set(id, { classes, data })
      return
    }
    const node = nodeOfExecution(id)
    if (!node || !classes.includes(node.comfyClass)) return
    if (data.isNothing && !this.views.has(node)) return
    if (isKnown(data, node.properties?.[this.property])) return // heard again
    data.after?.(this.views.get(node)?.data ?? null)
    this.newest.set(placeOf(node), data)
    this.show(node, data)
    if (save) changing(() => this.store(node, data))
  }

  /** Data that came in while this workflow was not open. */
  catchUp() {
    const waiting = this.elsewhere.get(rootGraph()?.id)
    this.elsewhere.delete(rootGraph()?.id)
    for (const [id, { classes, data }] of waiting ?? []) this.give(null, id, classes, data, { save: data.hasEnded })
  }

  /** What a node had before: in this session, or when its workflow was saved. */
  restore(node) {
    const stored = node.properties?.[this.property]
    // A copied node carries the data of the one it was copied from, which is not its own.
    const own = String(stored?.node) === String(node.id) ? this.ofStored(stored) : null
    // Opening a file shows what the file has, even if a newer run of it was seen; going back a step takes no map away.
    const newest = this.newest.get(placeOf(node))
    const data = newest && (isUndoing() || !newest.hasEnded) ? newest : own
    if (data) this.show(node, data)
  }

  /** Keep what the user has changed; going back a step does not take it back. */
  keep(node) {
    const { data } = this.views.get(node)
    this.newest.set(placeOf(node), data)
    changingForGood(node, this.property, () => this.store(node, data))
  }

  store(node, data) {
    node.properties ??= {}
    node.properties[this.property] = { ...data.toStored(), node: String(node.id) }
  }

  show(node, data) {
    if (!this.views.has(node)) this.views.set(node, this.addWidget(node))
    this.views.get(node).show(data)
  }

  addWidget(node) {
    const onResize = () => {
      node.setSize?.([node.size[0], node.computeSize()[1]])
      node.graph?.setDirtyCanvas(true, true)
    }
    const view = this.makeView(onResize, () => this.keep(node))
    const widget = node.addDOMWidget(this.name, `lora_conductor_${this.name}`, view.root, {
      serialize: false,
      hideOnZoom: false,
      hideInPanel: true, // the panel at the side would have an empty row for it
      getValue: () => view.data?.toStored() ?? null,
      setValue: () => {}, // the data comes from runs alone
      getMinHeight: () => view.height + 2 * MARGIN,
    })
    node.expandToFitContent?.() // as the page does when it makes the node anew, which would grow at every step back
    widget.serialize = false // nor among the node's widget values, which go by position
    return view
  }
}

/** Whether a node has kept this very run: as it was told live, or as the output of the node that ran. */
function isKnown({ run, prompt }, kept) {
  if (!run || !kept) return false
  return kept.run ? kept.run === run : kept.prompt === prompt
}
