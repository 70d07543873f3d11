// LoRA Conductor's routing map on its nodes, while sampling and after.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { KeptWidgets } from "./js/kept_widgets.js"
import { MapView } from "./js/map_view.js"
import { catchUpOn } from "./js/missed.js"
import { Recent, workflowOfPrompt } from "./js/recent.js"
import { RunMap } from "./js/run_map.js"

const LIVE = ["KLLayerRouter", "DualLoRADynamicLoader"]
const REPORT = ["RoutingReport"]

const runs = new Recent() // run -> its map, while its events come in
const maps = new KeptWidgets({
  name: "routing_map",
  makeView: (onResize) => new MapView(onResize),
  ofStored: RunMap.ofStored,
})

function onRouting({ detail }) {
  const map = detail.first_layer === 0 ? new RunMap(detail) : runs.get(detail.run)
  if (!map) return // its beginning went by before the page was there, and will be sent again
  runs.set(detail.run, map)
  workflowOfPrompt.set(detail.prompt, detail.workflow)
  map.add(detail)
  maps.give(detail.workflow, detail.node, LIVE, map, { save: detail.finished })
}

function onExecuted({ detail }) {
  const record = detail.output?.routing?.[0]
  if (!record?.layers?.length) return
  const map = RunMap.ofRecord(record, detail.prompt_id)
  maps.give(workflowOfPrompt.get(detail.prompt_id), detail.display_node ?? detail.node, REPORT, map, { save: true })
}

app.registerExtension({
  name: "loraconductor.RoutingMap",
  setup() {
    api.addEventListener("lora_conductor.routing", onRouting)
    api.addEventListener("executed", onExecuted)
    api.addEventListener("reconnected", () => catchUpOn([...workflowOfPrompt.keys()].at(-1), onExecuted))
  },
  nodeCreated(node) {
    maps.attach(node, [...LIVE, ...REPORT])
  },
  afterConfigureGraph() {
    maps.catchUp()
  },
})
