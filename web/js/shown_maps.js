// The maps of the nodes: given by events, kept with the workflow, shown by a widget once there is one.

import { changing, nodeOfExecution, placeOf, rootGraph } from "./graph.js"
import { MapView } from "./map_view.js"
import { RunMap } from "./run_map.js"

export const WIDGET = "routing_map"
const MARGIN = 10 // that the page leaves around a widget's element on the canvas
const PROPERTY = "lora_conductor.routing_map"

const views = new WeakMap() // node -> its view
const newest = new Map() // place of a node -> its newest map; outlives the node objects, which an undo makes anew
const elsewhere = new Map() // workflow -> { execution id -> map } that came in while another workflow was open

/** Take in a map for a node of a workflow, which may not be the open one. */
export function give(workflow, id, classes, map, { save }) {
  if (workflow && workflow !== rootGraph()?.id) {
    if (!elsewhere.has(workflow)) elsewhere.set(workflow, new Map())
    elsewhere.get(workflow).set(id, { classes, map })
    return
  }
  const node = nodeOfExecution(id)
  if (!node || !classes.includes(node.comfyClass)) return
  newest.set(placeOf(node), map)
  show(node, map)
  if (save) changing(() => store(node, map))
}

/** Maps that came in while this workflow was not open. */
export function catchUp() {
  const waiting = elsewhere.get(rootGraph()?.id)
  elsewhere.delete(rootGraph()?.id)
  for (const [id, { classes, map }] of waiting ?? []) give(null, id, classes, map, { save: map.finished })
}

/** The map a node had before: in this session, or when its workflow was saved. */
export function restore(node) {
  const stored = node.properties?.[PROPERTY]
  // A copied node carries the map of the one it was copied from, which is not its own.
  const own = String(stored?.node) === String(node.id) ? RunMap.ofStored(stored) : null
  const map = newest.get(placeOf(node)) ?? own
  if (map) show(node, map)
}

export function remove(node) {
  views.get(node)?.remove()
  views.delete(node)
}

function store(node, map) {
  node.properties ??= {}
  node.properties[PROPERTY] = { ...map.toStored(), node: String(node.id) }
}

function show(node, map) {
  if (!views.has(node)) views.set(node, addWidget(node))
  views.get(node).show(map)
}

function addWidget(node) {
  const view = new MapView(() => {
    node.setSize?.([node.size[0], node.computeSize()[1]])
    node.graph?.setDirtyCanvas(true, true)
  })
  const widget = node.addDOMWidget(WIDGET, "lora_conductor_routing_map", view.root, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => view.map?.toStored() ?? null,
    setValue: () => {}, // the map comes from runs alone
    getMinHeight: () => view.height + 2 * MARGIN,
  })
  widget.serialize = false // nor among the node's widget values, which go by position
  return view
}
