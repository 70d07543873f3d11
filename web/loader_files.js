// LoRA Conductor's loader with what is known of its files, and with a way to swap them.

import { app } from "../../scripts/app.js"
import { forgetFiles, showFiles } from "./js/loader_files.js"
import { swapRoles } from "./js/swapping.js"
import { inWords } from "./js/words.js"

const LOADER = "DualLoRADynamicLoader"

app.registerExtension({
  name: "loraconductor.LoaderFiles",
  nodeCreated(node) {
    if (node.comfyClass === LOADER) showFiles(node)
  },
  refreshComboInNodes: forgetFiles,
  getNodeMenuItems(node) {
    if (node.comfyClass !== LOADER) return []
    return [{ content: inWords("Swap subject and style"), callback: () => swapRoles(node) }]
  },
})
