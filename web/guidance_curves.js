// LoRA Conductor's curves of metric guidance on its nodes, while sampling and after.

import { CurvesView } from "./js/curves_view.js"
import { KeptWidgets } from "./js/kept_widgets.js"
import { RunCurves } from "./js/run_curves.js"
import { addPanel } from "./js/run_events.js"

const LIVE = ["MetricGuidedSampler"]
const FINISHED = [...LIVE, "GuidanceReport"]

addPanel({
  kept: new KeptWidgets({
    name: "guidance_curves",
    makeView: (onResize) => new CurvesView(onResize),
    ofStored: RunCurves.ofStored,
  }),
  nodes: FINISHED,
  live: {
    event: "lora_conductor.guidance",
    nodes: LIVE,
    begins: ({ first }) => first === 0,
    make: (message) => new RunCurves(message),
  },
  done: {
    nodes: FINISHED,
    read: ({ guidance }, prompt) => (guidance?.[0] ? RunCurves.ofReport(guidance[0], prompt) : null),
  },
})
