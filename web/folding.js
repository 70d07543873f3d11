// LoRA Conductor's nodes with what most users leave alone folded away, on the canvas as in Nodes 2.0.

import { app } from "../../scripts/app.js"
import { makeFoldable } from "./js/folding.js"

app.registerExtension({
  name: "loraconductor.Folding",
  nodeCreated: makeFoldable,
})
