// LoRA Conductor's reports in words on the nodes that make them.

import { KeptWidgets } from "./js/kept_widgets.js"
import { addPanel } from "./js/run_events.js"
import { Report, TextView } from "./js/text_view.js"

const NODES = ["RoutingReport", "DualLoRADynamicLoader", "BakeFusedLoRA", "MeasureMyPair"]

addPanel({
  kept: new KeptWidgets({
    name: "report_text",
    makeView: (onResize) => new TextView(onResize),
    ofStored: Report.ofStored,
  }),
  nodes: NODES,
  done: {
    nodes: NODES,
    read: ({ text }, prompt) => (typeof text?.[0] === "string" ? new Report({ text: text[0], prompt }) : null),
  },
})
