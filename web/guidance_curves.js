// LoRA Conductor's curves of metric guidance on its nodes, while sampling and after.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { CurvesView } from "./js/curves_view.js"
import { KeptWidgets } from "./js/kept_widgets.js"
import { catchUpOn } from "./js/missed.js"
import { Recent, workflowOfPrompt } from "./js/recent.js"
import { RunCurves } from "./js/run_curves.js"

const LIVE = ["MetricGuidedSampler"]
const FINISHED = [...LIVE, "GuidanceReport"]

const runs = new Recent() // run -> its curves, while its events come in
const curves = new KeptWidgets({
  name: "guidance_curves",
  makeView: (onResize) => new CurvesView(onResize),
  ofStored: RunCurves.ofStored,
})

function onGuidance({ detail }) {
  const run = detail.first === 0 ? new RunCurves(detail) : runs.get(detail.run)
  if (!run) return // its beginning went by before the page was there, and will be sent again
  runs.set(detail.run, run)
  workflowOfPrompt.set(detail.prompt, detail.workflow)
  run.add(detail.evaluations)
  curves.give(detail.workflow, detail.node, LIVE, run, { save: false })
}

function onExecuted({ detail }) {
  const report = detail.output?.guidance?.[0]
  if (!report) return
  const run = RunCurves.ofReport(report, detail.prompt_id)
  curves.give(workflowOfPrompt.get(detail.prompt_id), detail.display_node ?? detail.node, FINISHED, run, { save: true })
}

app.registerExtension({
  name: "loraconductor.GuidanceCurves",
  setup() {
    api.addEventListener("lora_conductor.guidance", onGuidance)
    api.addEventListener("executed", onExecuted)
    api.addEventListener("reconnected", () => catchUpOn([...workflowOfPrompt.keys()].at(-1), onExecuted))
  },
  nodeCreated(node) {
    curves.attach(node, FINISHED)
  },
  afterConfigureGraph() {
    curves.catchUp()
  },
})
