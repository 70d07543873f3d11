// LoRA Conductor's routing map on its nodes, while sampling and after.

import { KeptWidgets } from "./js/kept_widgets.js"
import { MapView } from "./js/map_view.js"
import { addPanel } from "./js/run_events.js"
import { RunMap } from "./js/run_map.js"

const LIVE = ["KLLayerRouter", "DualLoRADynamicLoader"]
const REPORT = ["RoutingReport"]

addPanel({
  kept: new KeptWidgets({
    name: "routing_map",
    makeView: (onResize) => new MapView(onResize),
    ofStored: RunMap.ofStored,
  }),
  nodes: [...LIVE, ...REPORT],
  live: {
    event: "lora_conductor.routing",
    nodes: LIVE,
    begins: (message) => message.first_layer === 0,
    make: (message) => new RunMap(message),
  },
  done: {
    nodes: REPORT,
    read: ({ routing }, prompt) => (routing?.[0] ? RunMap.ofRecord(routing[0], prompt) : null),
  },
})
