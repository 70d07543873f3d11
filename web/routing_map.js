// LoRA Conductor's routing map on its nodes, while sampling and after.

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { RunMap } from "./js/run_map.js"
import { catchUp, give, remove, restore } from "./js/shown_maps.js"

const LIVE = ["KLLayerRouter", "DualLoRADynamicLoader"]
const REPORT = ["RoutingReport"]
const KEPT = 16

const runs = new Map() // run -> its map, while its events come in
const workflows = new Map() // prompt -> workflow

function remember(map, key, value) {
  map.delete(key)
  map.set(key, value)
  if (map.size > KEPT) map.delete(map.keys().next().value)
}

function onRouting({ detail }) {
  const map = detail.first_layer === 0 ? new RunMap(detail) : runs.get(detail.run)
  if (!map) return // its beginning went by before the page was there, and will be sent again
  remember(runs, detail.run, map)
  remember(workflows, detail.prompt, detail.workflow)
  map.add(detail)
  give(detail.workflow, detail.node, LIVE, map, { save: detail.finished })
}

function onExecuted({ detail }) {
  const record = detail.output?.routing?.[0]
  if (!record?.layers?.length) return
  const map = RunMap.ofRecord(record, detail.prompt_id)
  give(workflows.get(detail.prompt_id) ?? null, detail.display_node ?? detail.node, REPORT, map, { save: true })
}

app.registerExtension({
  name: "LoraConductor.RoutingMap",
  setup() {
    api.addEventListener("lora_conductor.routing", onRouting)
    api.addEventListener("executed", onExecuted)
  },
  nodeCreated(node) {
    if (![...LIVE, ...REPORT].includes(node.comfyClass)) return
    const { onConfigure, onRemoved } = node
    node.onConfigure = function (...given) {
      onConfigure?.apply(this, given)
      restore(this)
    }
    node.onRemoved = function (...given) {
      onRemoved?.apply(this, given)
      remove(this)
    }
  },
  afterConfigureGraph() {
    catchUp()
  },
})
