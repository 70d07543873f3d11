// The chosen files as a DOM widget's element: picture, base model and trigger words of each, and a button that swaps.

import { api } from "../../../scripts/api.js"
import { Foldable, element } from "./panel.js"
import { inWords } from "./words.js"

const WITH_PICTURES = 206
const WITHOUT = 122
const COPIED_MS = 1200

/** What is known of the files of both roles, null where nothing is; and which are switched off. */
export class Files {
  constructor({ subject, style, off }) {
    Object.assign(this, { roles: [["subject", subject], ["style", style]], off })
  }

  get isNothing() {
    return !this.roles.some(([, file]) => file && (file.base || file.words.length || file.picture))
  }

  get hasPictures() {
    return this.roles.some(([, file]) => file?.picture)
  }

  /** Both in a few words. */
  get headline() {
    return this.roles.map(([, file]) => file?.for_prompt || file?.means || file?.base || "\u2013").join(" / ")
  }
}

export class FilesView extends Foldable {
  constructor(onResize, { onSwap, open }) {
    super(inWords("Files"), WITHOUT, onResize, open)
    this.files = element("div", "lc-files")
    this.scroll = this.files
    this.swap = element("button", "lc-swap", `\u21c4 ${inWords("Swap subject and style")}`)
    this.swap.type = "button"
    this.swap.addEventListener("click", onSwap)
    this.root.append(this.files, this.swap)
    this.files.addEventListener("pointerdown", (event) => event.stopPropagation()) // the node would be dragged
    this.files.addEventListener("wheel", (event) => this.keepWheel(event), { passive: true })
  }

  get height() {
    this.openHeight = this.data?.hasPictures ? WITH_PICTURES : WITHOUT
    return super.height
  }

  draw() {
    if (!this.data) return
    this.say(this.data.isNothing ? "" : this.data.headline)
    this.files.replaceChildren(...this.data.roles.map(([role, file]) => this.card(role, file)))
  }

  card(role, file) {
    const off = this.data.off.includes(role)
    const card = element("div", `lc-file lc-of-${role} ${off ? "lc-off" : ""}`)
    if (this.data.hasPictures) card.append(this.picture(file))
    const facts = [inWords(role)]
    if (file?.base) facts.push(file.means || file.base)
    if (file?.rank) facts.push(inWords("rank {rank}", { rank: file.rank }))
    if (off) facts.push(inWords("switched off"))
    const line = element("div", "", facts.join(", "))
    line.title = [file?.name, file?.base && `${file.base} (${file.base_from})`].filter(Boolean).join("\n")
    card.append(line)
    if (file) card.append(file.words.length ? this.words(file) : faint(inWords("names no trigger words")))
    return card
  }

  picture(file) {
    if (!file?.picture) return element("div", "lc-no-picture")
    const { folder, name } = file.picture
    const image = element("img", "")
    image.alt = ""
    image.draggable = false
    image.addEventListener("error", () => image.remove())
    const path = name.split("/").map(encodeURIComponent).join("/")
    image.src = api.apiURL(`/experiment/models/preview/loras/${folder}/${path}`)
    return image
  }

  words(file) {
    const shown = file.words.join("; ")
    const button = element("button", "lc-words", shown)
    button.type = "button"
    button.title = `${inWords("Click: copy the trigger words")}\n${file.for_prompt}\n(${file.words_from})`
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(file.for_prompt)
        button.textContent = inWords("copied")
        setTimeout(() => (button.textContent = shown), COPIED_MS)
      } catch {
        // Pages that are not from this machine may have no clipboard: the words can be selected.
      }
    })
    return button
  }
}

function faint(text) {
  return element("div", "lc-faint", text)
}
