// What the server knows of the files that are chosen on a loader, shown on it as soon as they are.

import { api } from "../../../scripts/api.js"
import { chain } from "./chain.js"
import { Files, FilesView } from "./files_view.js"
import { changing } from "./graph.js"
import { swapRoles } from "./swapping.js"

const MARGIN = 10 // that the page leaves around a widget's element on the canvas
const OPEN = "lora_conductor.files_open" // of the node's properties
const ROLES = ["subject", "style"]

let asked = new Map() // name of a file -> promise of what is known of it

/** Ask anew from now on: files may have changed. */
export function forgetFiles() {
  asked = new Map()
}

/** Have a loader show what is known of its files. */
export function showFiles(node) {
  const widgets = Object.fromEntries(node.widgets.map((widget) => [widget.name, widget]))
  const panel = { view: null, turn: 0, isByHand: false }
  const update = () => showKnown(node, widgets, panel)
  const chosen = () => {
    panel.isByHand = true
    update()
  }
  for (const role of ROLES) {
    for (const name of [`${role}_lora`, `${role}_on`]) if (widgets[name]) chain(widgets[name], "callback", chosen)
  }
  chain(node, "onConfigure", update)
  chain(node, "onRemoved", () => (panel.turn += 1))
  update()
}

async function showKnown(node, widgets, panel) {
  const turn = ++panel.turn
  const known = await Promise.all(ROLES.map((role) => knownOf(widgets[`${role}_lora`]?.value)))
  if (turn !== panel.turn) return // others were chosen meanwhile, or the node is gone
  const off = ROLES.filter((role) => widgets[`${role}_on`]?.value === false)
  const files = new Files({ subject: known[0], style: known[1], off })
  if (files.isNothing && !panel.view) return
  // Opening a workflow that was saved before there was a panel does not cover what stands below.
  if (panel.isByHand && isOpen(node) === undefined) keepOpen(node, true)
  panel.view ??= addPanel(node)
  panel.view.show(files)
}

function isOpen(node) {
  return node.properties?.[OPEN]
}

function keepOpen(node, open) {
  node.properties ??= {}
  node.properties[OPEN] = open
}

/** Null for no file, for one that is not there, and where the server does not know how to answer. */
function knownOf(name) {
  if (typeof name !== "string" || name === "None") return null
  if (!asked.has(name)) asked.set(name, ask(name))
  return asked.get(name)
}

async function ask(name) {
  try {
    const answer = await api.fetchApi(`/lora_conductor/about?name=${encodeURIComponent(name)}`)
    return answer.ok ? await answer.json() : null
  } catch {
    asked.delete(name) // no connection
    return null
  }
}

function addPanel(node) {
  const view = new FilesView(
    () => {
      node.setSize?.([node.size[0], node.computeSize()[1]])
      node.graph?.setDirtyCanvas(true, true)
    },
    { onSwap: () => swapRoles(node), open: Boolean(isOpen(node)) },
  )
  chain(view, "toggle", () => changing(() => keepOpen(node, view.open)))
  const widget = node.addDOMWidget("files", "lora_conductor_files", view.root, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true, // the panel at the side would have an empty row for it
    getValue: () => null,
    setValue: () => {},
    getMinHeight: () => view.height + 2 * MARGIN,
  })
  widget.serialize = false // nor among the node's widget values, which go by position
  node.expandToFitContent?.()
  return view
}
