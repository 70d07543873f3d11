// Subject and style, the other way round: values, and what is connected, of all inputs that both roles have.

import { changing } from "./graph.js"

const ROLES = ["subject_", "style_"]

/** Swap what a node has for its roles; one step for the page's undo. */
export function swapRoles(node) {
  changing(() => {
    for (const [one, other] of pairs(node.widgets)) {
      const values = [other.value, one.value]
      for (const [i, widget] of [one, other].entries()) {
        widget.value = values[i]
        widget.callback?.(values[i])
      }
    }
    for (const [one, other] of pairs(node.inputs)) swapLinks(node, one, other)
  })
  node.graph?.setDirtyCanvas(true, true)
}

/** Those of named things that come for both roles, subject first. */
function pairs(named) {
  const of = (name) => named.find((one) => one.name === name)
  const subjects = (named ?? []).filter(({ name }) => name?.startsWith(ROLES[0]))
  return subjects
    .map((one) => [one, of(one.name.replace(...ROLES))])
    .filter(([, other]) => other !== undefined)
}

function swapLinks(node, one, other) {
  const connects = [one, other].map((input) => connecting(node, input.link))
  const slots = [other, one].map((input) => node.inputs.indexOf(input))
  for (const [i, input] of [one, other].entries()) if (connects[i]) node.disconnectInput(node.inputs.indexOf(input), true)
  connects.forEach((connect, i) => connect?.(slots[i]))
}

/** How to connect to another input what a link comes from; null for no link. */
function connecting(node, id) {
  const { graph } = node
  const link = id === null || id === undefined ? null : graph.links.get?.(id) ?? graph.links[id]
  if (!link) return null
  const { origin_id, origin_slot, parentId } = link
  if (String(origin_id) === String(graph.inputNode?.id)) {
    const input = graph.inputs[origin_slot] // of the subgraph
    return (slot) => input.connect(node.inputs[slot], node, parentId)
  }
  const origin = graph.getNodeById(origin_id)
  return (slot) => origin.connect(origin_slot, node, slot, parentId)
}
