// Which node of the open workflow an event speaks of.

import { app } from "../../../scripts/app.js"

export function rootGraph() {
  return app.rootGraph ?? app.graph
}

/** The node with an execution id ("7", or "1:2:7" inside subgraphs); null if it is not in this workflow. */
export function nodeOfExecution(id) {
  let graph = rootGraph()
  const path = String(id).split(":")
  for (const part of path.slice(0, -1)) graph = graph?.getNodeById(part)?.subgraph
  return graph?.getNodeById(path.at(-1)) ?? null
}

/** A node's place in the workflow; two copies of a subgraph share theirs, as they share the node. */
export function placeOf(node) {
  return `${rootGraph()?.id}/${node.graph?.id}/${node.id}`
}

/** Let the page save the workflow with what `change` does to it. */
export function changing(change) {
  app.canvas?.emitBeforeChange?.()
  try {
    change()
  } finally {
    app.canvas?.emitAfterChange?.()
  }
}

/** Whether the page is going a step back or forward in what was changed, which makes all nodes anew. */
export function isUndoing() {
  return app.extensionManager?.workflow?.activeWorkflow?.changeTracker?._restoringState === true
}
