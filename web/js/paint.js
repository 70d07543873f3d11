// The map on its canvas: layers down, steps across, colour = who won and how clearly.

export const GUTTER = 74 // left of the cells: names of the blocks
export const ROW = 3 // least height of a row, in pixels
const LABEL_HEIGHT = 10
const FINEST_SHARE = 0.01 // of an even split: closer ones are painted alike

/** Paint all cells: who drew what, or `ofWeights` who got more weight; returns nothing. `size` is in CSS pixels. */
export function paint(canvas, size, map, rows, colours, focus, ofWeights) {
  const context = canvas.getContext("2d")
  const scale = canvas.width / size.width
  context.setTransform(scale, 0, 0, scale, 0, 0)
  context.clearRect(0, 0, size.width, size.height)
  const width = (size.width - GUTTER) / Math.max(1, map.steps)
  const height = size.height / Math.max(1, rows.length)
  const shown = [...map.columns.keys()].sort((a, b) => a - b)
  rows.forEach((row, r) => {
    shown.forEach((step, i) => {
      const cell = map.cell(row.layers, step)
      if (!cell) return
      // A map that kept every nth step only shows each until the next.
      const until = map.finished ? (shown[i + 1] ?? map.steps) : step + 1
      const box = [GUTTER + step * width, r * height, (until - step) * width + 0.3, height + 0.3]
      context.globalAlpha = 1
      context.fillStyle = colours.even
      context.fillRect(...box)
      const lean = 2 * (ofWeights ? cell.weightShare : (cell.contribution ?? 0.5)) - 1
      if (Math.abs(lean) < FINEST_SHARE) return
      context.globalAlpha = Math.abs(lean) ** 0.6
      context.fillStyle = lean > 0 ? colours.subject : colours.style
      context.fillRect(...box)
    })
  })
  context.globalAlpha = 1
  paintEdges(context, rows, height, size, colours)
  if (focus) {
    context.strokeStyle = colours.text
    context.lineWidth = 1.5
    context.strokeRect(GUTTER + focus.step * width, focus.row * height, width, height)
  }
}

function paintEdges(context, rows, height, size, colours) {
  context.strokeStyle = colours.line
  context.lineWidth = 0.5
  rows.forEach((row, r) => {
    if (r === 0 || rows[r - 1].block === row.block) return
    context.beginPath()
    context.moveTo(GUTTER, r * height)
    context.lineTo(size.width, r * height)
    context.stroke()
  })
}

/** Names of the blocks, as Panel.label takes them. */
export function labelsOf(rows, size, isFolded) {
  const height = size.height / Math.max(1, rows.length)
  const labels = []
  let freeFrom = 0 // names of thin blocks would lie on each other: those that find no room are left out
  for (let r = 0; r < rows.length; ) {
    let end = r
    while (end < rows.length && rows[end].block === rows[r].block) end++
    const [top, bottom] = [r * height, end * height]
    const y = Math.max(Math.min((top + bottom) / 2, top + LABEL_HEIGHT), LABEL_HEIGHT / 2)
    if (y - LABEL_HEIGHT / 2 >= freeFrom - 1 && y + LABEL_HEIGHT / 2 <= size.height) {
      const mark = isFolded(rows[r].block.name) ? "\u25b8" : "\u25be"
      labels.push({ text: `${mark} ${rows[r].block.label}`, x: 0, y, width: GUTTER - 4 })
      freeFrom = y + LABEL_HEIGHT / 2
    }
    r = end
  }
  return labels
}

/** Row and step under a point of the canvas, in CSS pixels; `step` is null in the gutter. */
export function placeAt(x, y, size, map, rows) {
  const row = Math.floor((y / size.height) * rows.length)
  if (!rows[row]) return null
  const step = Math.floor(((x - GUTTER) / (size.width - GUTTER)) * map.steps)
  return { row, step: x < GUTTER || step >= map.steps ? null : step }
}
