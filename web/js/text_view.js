// A report in words as a DOM widget's element; folded until somebody wants to read it.

import { Foldable, element } from "./panel.js"
import { inWords } from "./words.js"

const OPEN_HEIGHT = 190
const STORED_CHARACTERS = 12_000 // a workflow should not grow without bounds for its reports

/** What a node said in its last run. */
export class Report {
  constructor({ text, prompt = null }) {
    Object.assign(this, { text, prompt, hasEnded: true })
  }

  static ofStored(stored) {
    return stored?.version === 1 ? new Report(stored) : null
  }

  toStored() {
    return { version: 1, prompt: this.prompt, text: this.text.slice(0, STORED_CHARACTERS) }
  }
}

export class TextView extends Foldable {
  constructor(onResize) {
    super(inWords("Report"), OPEN_HEIGHT, onResize, false)
    this.scroll = element("pre", "lc-text")
    this.root.append(this.scroll)
    this.scroll.addEventListener("pointerdown", (event) => event.stopPropagation()) // the node would be dragged
    this.scroll.addEventListener("wheel", (event) => this.keepWheel(event), { passive: true })
  }

  draw() {
    if (!this.data) return
    this.say(this.data.text.split("\n", 1)[0])
    this.scroll.textContent = this.data.text
  }
}
