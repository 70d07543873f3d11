// The blind vote as a DOM widget's element: two pictures without names, and what came of it once all are judged.

import { api } from "../../../scripts/api.js"
import { Foldable, element } from "./panel.js"
import { NEITHER, OURS, RIVALS } from "./vote.js"
import { inWords } from "./words.js"

const [OPEN_HEIGHT, DONE_HEIGHT] = [320, 104]
const CSS = `
.lc-vote-pictures { flex: 1 1 0 !important; min-height: 0; display: flex; gap: 6px; }
.lc-vote-pictures img { flex: 1 1 0; min-width: 0; min-height: 0; object-fit: contain; }
.lc-vote-row { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 6px; }
.lc-vote-row button, .lc-vote-row select { font: inherit; color: inherit; background: transparent; cursor: pointer;
  border: 1px solid var(--border-color, #666); border-radius: 4px; padding: 3px 8px; }
.lc-vote-row option { color: #222; background: #fff; }
.lc-vote-row .lc-vote-choice { flex: 1; padding: 6px 4px; }
.lc-vote-row button:disabled { opacity: .4; cursor: default; }
.lc-vote-said { overflow-wrap: anywhere; }
.lora-conductor-panel [hidden] { display: none; }
`

export class VoteView extends Foldable {
  constructor(onResize, onChange) {
    super(inWords("Blind vote"), OPEN_HEIGHT, onResize, true)
    Object.assign(this, { onChange, pair: null, isRevealed: false })
    this.root.append(element("style", "", CSS))
    this.question = element("div", "lc-vote-said")
    this.images = [0, 1].map(() => {
      const image = element("img", "")
      image.alt = ""
      image.draggable = false
      image.addEventListener("load", () => this.hear(image, "loaded"))
      image.addEventListener("error", () => this.hear(image, "gone"))
      return image
    })
    this.pictures = element("div", "lc-vote-pictures", ...this.images)
    this.buttons = [0, null, 1].map((side) => this.button("lc-vote-choice", () => this.vote(side)))
    this.choices = element("div", "lc-vote-row", ...this.buttons)
    this.rival = element("select", "", ...RIVALS.map((rival) => new Option(nameOf(rival), rival)))
    this.rival.addEventListener("change", () => this.change((vote) => (vote.rival = this.rival.value)))
    this.reveal = this.button("", () => this.turnOver())
    this.clear = this.button("", () => this.change((vote) => vote.reset()))
    this.against = element("span", "")
    this.foot = element("div", "lc-vote-row", this.against, this.rival, this.reveal, this.clear)
    this.said = element("div", "lc-vote-said")
    this.root.append(this.question, this.pictures, this.choices, this.foot, this.said)
    for (const part of [this.pictures, this.choices, this.foot])
      part.addEventListener("pointerdown", (event) => event.stopPropagation()) // the node would be dragged
  }

  get height() {
    const height = super.height
    return height === OPEN_HEIGHT && this.data && !this.data.open.length ? DONE_HEIGHT : height
  }

  button(className, press) {
    const made = element("button", className)
    made.type = "button"
    made.addEventListener("click", press)
    return made
  }

  draw() {
    const vote = this.data
    if (!vote) return
    const { open } = vote
    if (!open.includes(this.pair)) this.offer(open[Math.floor(Math.random() * open.length)] ?? null)
    const [count, judged] = [vote.pairs.length, vote.pairs.length - open.length]
    this.say(inWords("{judged} of {count} judged", { judged, count }))
    const isReady = this.images.every(({ state }) => state === "loaded")
    const isGone = this.images.some(({ state }) => state === "gone")
    this.question.textContent = this.pair ? inWords("Which is the better picture of this subject in that style?") : ""
    if (!this.pair) this.question.textContent = inWords("All are judged. For more, take another seed and queue again.")
    if (this.pair && isGone) this.question.textContent = inWords("The pictures are gone: queue again to vote on.")
    this.pictures.hidden = this.choices.hidden = !this.pair || isGone
    const words = [inWords("left"), inWords("neither"), inWords("right")]
    this.buttons.forEach((button, i) => Object.assign(button, { textContent: words[i], disabled: !isReady }))
    this.against.textContent = inWords("against")
    this.rival.value = vote.rival
    this.clear.textContent = inWords("reset")
    const isOpen = this.isRevealed || !open.length
    this.reveal.hidden = !open.length
    this.reveal.textContent = this.isRevealed ? inWords("hide the tally") : inWords("show the tally")
    this.said.textContent = isOpen ? this.tally() : inWords("The tally is hidden while you vote.")
  }

  tally() {
    const { ours, theirs, neither, p } = this.data.tally()
    const values = { policy: this.data.policy, ours, rival: nameOf(this.data.rival), theirs, neither }
    const counts = inWords("{policy} {ours}, {rival} {theirs}, neither {neither}", values)
    return ours + theirs ? `${counts} \u00b7 ${inWords("p = {p} (sign test)", { p: p.toPrecision(2) })}` : counts
  }

  /** Show a pair, in an order that chance decides and nothing on the page tells. */
  offer(pair) {
    this.pair = pair
    this.sides = Math.random() < 0.5 ? [OURS, this.data.rival] : [this.data.rival, OURS]
    this.images.forEach((image, i) => {
      image.state = null
      if (pair) image.src = addressOf(pair.pictures[this.sides[i]])
      else image.removeAttribute("src")
    })
  }

  hear(image, state) {
    image.state = state
    this.draw()
  }

  vote(side) {
    const { pair } = this
    if (pair) this.change((vote) => vote.cast(pair.id, side === null ? NEITHER : this.sides[side]))
  }

  change(how) {
    const { height } = this
    how(this.data)
    this.pair = null
    this.applyFold()
    this.draw()
    if (this.height !== height) this.onResize()
    this.onChange()
  }

  turnOver() {
    this.isRevealed = !this.isRevealed
    this.draw()
  }

  show(data) {
    if (data !== this.data) this.pair = null
    super.show(data)
  }
}

function addressOf(name) {
  return api.apiURL(`/view?${new URLSearchParams({ filename: name, type: "temp", subfolder: "" })}`)
}

function nameOf(rival) {
  const words = {
    stacked: () => inWords("stacked"),
    subject: () => inWords("subject alone"),
    style: () => inWords("style alone"),
    base: () => inWords("no LoRA"),
  }
  return words[rival]()
}
