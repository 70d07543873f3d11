// How panels hear of runs: while they go on, when a node is done, and after the page did not listen for a while.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"
import { Recent } from "./recent.js"
import { fetchWords } from "./words.js"

const ENDS = ["execution_success", "execution_error", "execution_interrupted"]
const MISSED_PROMPTS = 4 // how many of the newest to look through

const panels = []
const workflowOfPrompt = new Recent()
const ended = new Recent() // prompt -> that the page was there when it ended

/**
 * Have a kind of panel filled by the server's events.
 *
 * kept: its KeptWidgets. nodes: classes of the nodes that have it.
 * live: null, or { event, nodes, begins(message), make(message) }
 * done: { nodes, read(output, prompt): its data, null if the output has none }
 */
export function addPanel(panel) {
  panels.push({ live: null, runs: new Recent(), ...panel }) // run -> its data, while its events come in
}

function onMessage({ kept, live, runs }, message) {
  const data = live.begins(message) ? live.make(message) : runs.get(message.run)
  if (!data) return // its beginning went by before the page listened; it has asked for all of it
  runs.set(message.run, data)
  workflowOfPrompt.set(message.prompt, message.workflow)
  data.add(message)
  kept.give(message.workflow, message.node, live.nodes, data, { save: data.hasEnded })
}

function onExecuted({ prompt_id, node, display_node, output }) {
  for (const { kept, done } of panels) {
    const data = output && done.read(output, prompt_id)
    if (data) kept.give(workflowOfPrompt.get(prompt_id), display_node ?? node, done.nodes, data, { save: true })
  }
}

/** Ask for what the server told while this page was reloaded or not connected. */
async function catchUp() {
  const client = api.clientId ?? api.initialClientId
  if (!client) return
  try {
    await hearOutputs(client)
    await api.fetchApi(`/lora_conductor/tell_again?client=${encodeURIComponent(client)}`, { method: "POST" })
  } catch (error) {
    console.warn("LoRA Conductor: could not ask what was missed.", error)
  }
}

/** Outputs of this page's prompts whose end it did not hear of, oldest first. */
async function hearOutputs(client) {
  const answer = await api.fetchApi(`/history?max_items=${MISSED_PROMPTS}`)
  if (!answer.ok) return
  for (const [prompt_id, { prompt, outputs, meta }] of Object.entries(await answer.json())) {
    const extra = prompt[3] ?? {}
    if (extra.client_id !== client || ended.has(prompt_id)) continue
    workflowOfPrompt.set(prompt_id, extra.extra_pnginfo?.workflow?.id)
    for (const [node, output] of Object.entries(outputs ?? {}))
      onExecuted({ prompt_id, node, display_node: meta?.[node]?.display_node, output })
  }
}

app.registerExtension({
  name: "loraconductor.Panels",
  async setup() {
    for (const panel of panels.filter(({ live }) => live))
      api.addEventListener(panel.live.event, ({ detail }) => onMessage(panel, detail))
    for (const end of ENDS) api.addEventListener(end, ({ detail }) => ended.set(detail.prompt_id, true))
    api.addEventListener("executed", ({ detail }) => onExecuted(detail))
    api.addEventListener("reconnected", catchUp)
    await Promise.all([fetchWords(), catchUp()])
  },
  nodeCreated(node) {
    for (const { kept, nodes } of panels) kept.attach(node, nodes)
  },
  afterConfigureGraph() {
    for (const { kept } of panels) kept.catchUp()
  },
})
