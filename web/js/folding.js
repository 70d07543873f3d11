// Settings that most users leave alone, folded away on the canvas too: it draws what the schema calls advanced like all
// the rest, though it knows how to hide it. Values, their order and what is sent to the server stay as they are.

import { chain } from "./chain.js"
import { inWords } from "./words.js"

const CATEGORY = "LoRA Conductor"
const ALWAYS = ["emphasis"] // how hard both are pushed, at any CFG: not for experts only

/** Have a node of ours fold. What is unfolded is kept with the workflow, by the page itself (`showAdvanced`). */
export function makeFoldable(node) {
  const inputs = inputsOf(node)
  if (!Object.values(inputs).some(([, options]) => options?.advanced)) return
  node.showAdvanced ??= false
  for (const { name, options } of node.widgets) if (ALWAYS.includes(name)) options.advanced = false // in Nodes 2.0
  const button = node.addWidget("button", "lora_conductor_more", "", () => turn(node, inputs), {
    serialize: false,
    canvasOnly: true,
  })
  button.serialize = false // nor among the widget values, which go by position
  // The page leaves room for what it hides.
  node.getLayoutWidgets = function () {
    return this.widgets.filter((widget) => this.collapsed || rowIsVisible(this, widget))
  }
  const policy = node.widgets.find(({ name }) => name === "policy")
  if (policy) chain(policy, "callback", () => fold(node, inputs, { fits: true }))
  chain(node, "onConfigure", (saved) => fold(node, inputs, { fits: saved?.showAdvanced === undefined }))
  chain(node, "onConnectionsChange", () => fold(node, inputs, { fits: false }))
  fold(node, inputs, { fits: true })
}

function inputsOf({ constructor: { nodeData } }) {
  if (nodeData?.category !== CATEGORY) return {}
  return { ...nodeData.input?.required, ...nodeData.input?.optional }
}

function turn(node, inputs) {
  node.showAdvanced = !node.showAdvanced
  fold(node, inputs, { fits: true })
}

/** Hide what is advanced, or does nothing under the chosen policy, unless somebody has changed it. */
function fold(node, inputs, { fits }) {
  const acting = inputs.policy?.[1]?.acting
  const settings = acting && new Set(Object.values(acting).flat())
  const acts = acting?.[node.widgets.find(({ name }) => name === "policy")?.value]
  for (const widget of node.widgets) {
    const options = inputs[widget.name]?.[1]
    if (!options) continue
    const idle = Boolean(acts && settings.has(widget.name) && !acts.includes(widget.name))
    const isLinked = node.inputs?.some((input) => input.widget?.name === widget.name && input.link !== null)
    const isChanged = options.advanced && widget.value !== defaultOf(inputs[widget.name])
    widget.disabled = idle
    widget.advanced = !isLinked && (idle || (options.advanced && !ALWAYS.includes(widget.name) && !isChanged))
  }
  const button = node.widgets.find(({ name }) => name === "lora_conductor_more")
  const count = node.widgets.filter(({ advanced }) => advanced).length
  button.label = node.showAdvanced ? inWords("fewer settings") : inWords("{count} more settings", { count })
  if (fits && !globalThis.LiteGraph?.vueNodesMode) node.setSize([node.size[0], node.computeSize()[1]])
  node.setDirtyCanvas?.(true, true)
}

function defaultOf([type, options]) {
  return options.default ?? (Array.isArray(type) ? type[0] : options.options?.[0])
}

function rowIsVisible(node, widget) {
  return node.isWidgetRowVisible ? node.isWidgetRowVisible(widget) : node.isWidgetVisible(widget)
}
