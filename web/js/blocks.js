// Layers by block of the model, and the rows that a map with some blocks folded has.

const MANY_LAYERS = 48

/** Name of a layer's block: up to its first number ("blocks.3", "blocks.block3"), or its first part. */
export function blockOf(layer) {
  const name = shortName(layer)
  return /^.*?\.(block)?\d+(?=\.|$)/.exec(name)?.[0] ?? name.split(".")[0]
}

export function shortName(layer) {
  return layer.replace(/^diffusion_model\./, "")
}

/** "double_blocks.3" -> "double 3", "blocks.3" -> "block 3" */
export function blockLabel(block) {
  const label = block.replace(/_?(transformer_)?blocks?(?=\.|$)/, "").replace(/[._]+/g, " ").trim() || block
  return /^\d+$/.test(label) ? `block ${label}` : label.replace(/^block(?=\d)/, "block ")
}

/** Blocks in the order their layers run: [{ name, layers: indices }]. */
export function blocksOf(layers) {
  const blocks = new Map()
  layers.forEach((layer, i) => {
    const name = blockOf(layer)
    if (!blocks.has(name)) blocks.set(name, { name, layers: [] })
    blocks.get(name).layers.push(i)
  })
  return [...blocks.values()]
}

/** Whether a block starts folded: where every layer would be a hair's breadth. */
export function foldedAtFirst(layers) {
  return layers.length > MANY_LAYERS
}

/** Rows from top to bottom: [{ block, layers: indices }], one a layer, or one a folded block. */
export function rowsOf(blocks, isFolded) {
  return blocks.flatMap((block) =>
    isFolded(block.name) ? [{ block, layers: block.layers }] : block.layers.map((layer) => ({ block, layers: [layer] })),
  )
}
