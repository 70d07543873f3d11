// LoRA Conductor's reports in words on the nodes that make them.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { KeptWidgets } from "./js/kept_widgets.js"
import { workflowOfPrompt } from "./js/recent.js"
import { Report, TextView } from "./js/text_view.js"

const NODES = ["RoutingReport", "DualLoRADynamicLoader", "BakeFusedLoRA"]

const reports = new KeptWidgets({
  name: "report_text",
  makeView: (onResize) => new TextView(onResize),
  ofStored: Report.ofStored,
})

function onExecuted({ detail }) {
  const text = detail.output?.text?.[0]
  if (typeof text !== "string") return
  const report = new Report({ text, prompt: detail.prompt_id })
  const node = detail.display_node ?? detail.node
  reports.give(workflowOfPrompt.get(detail.prompt_id), node, NODES, report, { save: true })
}

app.registerExtension({
  name: "loraconductor.ReportText",
  setup() {
    api.addEventListener("executed", onExecuted)
  },
  nodeCreated(node) {
    reports.attach(node, NODES)
  },
  afterConfigureGraph() {
    reports.catchUp()
  },
})
