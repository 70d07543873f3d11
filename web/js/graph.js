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

/**
 * Let the page save a change of one node's property that is no step to go back to: every state that it remembers gets
 * the property as it is now, so that undo and redo leave it alone.
 */
export function changingForGood(node, property, change) {
  changing(() => {}) // what else has changed stays a step of its own
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
  const { activeState: before, redoQueue } = tracker ?? {}
  const redo = [...(redoQueue ?? [])]
  changing(change)
  const { undoQueue } = tracker ?? {}
  if (!Array.isArray(undoQueue) || !Array.isArray(redoQueue)) return // a page that remembers in another way
  if (undoQueue.length && undoQueue[undoQueue.length - 1] === before) undoQueue.pop()
  if (!redoQueue.length) redoQueue.push(...redo)
  for (const state of [...undoQueue, ...redoQueue]) {
    const graphs = [state, ...(state.definitions?.subgraphs ?? [])]
    const graph = node.graph === rootGraph() ? state : graphs.find(({ id }) => id === node.graph?.id)
    const saved = graph?.nodes?.find(({ id, type }) => String(id) === String(node.id) && type === node.type)
    if (saved) saved.properties = { ...saved.properties, [property]: JSON.parse(JSON.stringify(node.properties[property])) }
  }
}

/** Whether the page is going a step back or forward in what was changed, which makes all nodes anew. */
export function isUndoing() {
  return app.extensionManager?.workflow?.activeWorkflow?.changeTracker?._restoringState === true
}
