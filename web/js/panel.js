// Panels on nodes: a headline that folds; under it a text, or a painted part with a legend and what is pointed at.

const SHUT_HEIGHT = 28
const SHARPNESS = 2 // canvas pixels a CSS pixel, at least: the graph may be zoomed in

// Orange and blue: told apart with every common kind of colour blindness, on dark and on light.
const CSS = `
.lora-conductor-panel { --lc-subject: #f28e1c; --lc-style: #2f7fe0; --lc-other: #1d9a73; display: flex;
  flex-direction: column; gap: 3px; width: 100%; height: 100%; box-sizing: border-box; overflow: hidden;
  padding: 4px 6px; border-radius: 6px; background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd);
  font: 11px/14px sans-serif; user-select: none; transition: background-color 1ms, color 1ms; }
.lora-conductor-panel > * { flex: none; }
.lora-conductor-panel .lc-head { all: unset; cursor: pointer; display: flex; gap: 6px; white-space: nowrap;
  overflow: hidden; line-height: 18px; }
.lora-conductor-panel .lc-head:focus-visible { outline: 1px solid currentColor; }
.lora-conductor-panel .lc-status { overflow: hidden; text-overflow: ellipsis; color: var(--descrip-text, #999); }
.lora-conductor-panel .lc-scroll { flex: 1 1 0; min-height: 0; overflow: hidden auto; position: relative; }
.lora-conductor-panel canvas { display: block; position: absolute; inset: 0 auto auto 0; touch-action: manipulation; }
.lora-conductor-panel .lc-labels { position: absolute; inset: 0 auto auto 0; pointer-events: none;
  font: 10px/10px sans-serif; }
.lora-conductor-panel .lc-labels span { position: absolute; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; transform: translateY(-50%); }
.lora-conductor-panel .lc-labels .lc-ends { transform: translate(-100%, -50%); }
.lora-conductor-panel .lc-labels .lc-faint { color: var(--descrip-text, #999); }
.lora-conductor-panel .lc-legend { display: flex; align-items: center; gap: 5px; white-space: nowrap; }
.lora-conductor-panel .lc-scale { flex: 1; height: 7px; border-radius: 2px; opacity: .95;
  background: linear-gradient(to right, var(--lc-subject), var(--border-color, #666), var(--lc-style)); }
.lora-conductor-panel .lc-kind { all: unset; cursor: pointer; text-decoration: underline dotted; margin-left: 4px; }
.lora-conductor-panel .lc-kind[hidden] { display: none; }
.lora-conductor-panel .lc-kind:focus-visible { outline: 1px solid currentColor; }
.lora-conductor-panel .lc-legend.lc-wraps { flex-wrap: wrap; gap: 0 10px; }
.lora-conductor-panel .lc-detail { height: 28px; overflow: hidden; color: var(--descrip-text, #999); }
.lora-conductor-panel .lc-text { flex: 1 1 0; min-height: 0; margin: 0; overflow: hidden auto; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 11px/15px monospace; user-select: text; cursor: text; }
.lora-conductor-panel.lc-shut > :not(.lc-head):not(style) { display: none; }
`

export function element(kind, className, ...children) {
  const made = document.createElement(kind)
  made.className = className
  made.append(...children)
  return made
}

/** A headline that folds away what is under it. Its heirs have draw(). */
export class Foldable {
  constructor(title, openHeight, onResize, open) {
    Object.assign(this, { title, openHeight, onResize, data: null, open })
    this.arrow = element("span", "lc-arrow")
    this.status = element("span", "lc-status")
    this.head = element("button", "lc-head", this.arrow, element("span", "", title), this.status)
    this.head.type = "button"
    this.head.addEventListener("click", () => this.toggle())
    this.root = element("div", "lora-conductor-panel", element("style", "", CSS), this.head)
    this.applyFold()
  }

  get height() {
    return this.open && !this.data?.isNothing ? this.openHeight : SHUT_HEIGHT
  }

  show(data) {
    const { height } = this
    this.data = data
    this.applyFold()
    this.draw()
    if (this.height !== height) this.onResize()
  }

  remove() {}

  applyFold() {
    this.root.classList.toggle("lc-shut", this.height === SHUT_HEIGHT)
    this.root.style.minHeight = `${this.height}px`
  }

  toggle() {
    this.open = !this.open
    this.applyFold()
    this.draw()
    this.onResize()
  }

  /** The headline's right part. */
  say(status) {
    this.arrow.textContent = this.height === SHUT_HEIGHT ? "\u25b8" : "\u25be"
    this.status.textContent = this.head.title = status
  }

  /** The wheel scrolls what is longer than its place, instead of zooming the graph. */
  keepWheel(event) {
    if (this.scroll.scrollHeight > this.scroll.clientHeight) event.stopPropagation()
  }
}

/** With a painted part. Its heirs have point(event) as well, event null when the pointer has left. */
export class Panel extends Foldable {
  constructor(title, openHeight, onResize) {
    super(title, openHeight, onResize, true)
    this.focus = null
    this.canvas = element("canvas", "")
    this.canvas.setAttribute("role", "img")
    this.labels = element("div", "lc-labels")
    this.scroll = element("div", "lc-scroll", this.canvas, this.labels)
    this.legend = element("div", "lc-legend")
    this.detail = element("div", "lc-detail")
    this.root.append(this.scroll, this.legend, this.detail)
    this.canvas.addEventListener("pointermove", (event) => this.point(event))
    this.canvas.addEventListener("pointerdown", (event) => this.press(event))
    this.canvas.addEventListener("pointerleave", () => this.point(null))
    this.scroll.addEventListener("wheel", (event) => this.keepWheel(event), { passive: true })
    // Another theme is another colour of the text: what is painted has to follow.
    this.root.addEventListener("transitionend", (event) => event.target === this.root && this.draw())
    this.observer = new ResizeObserver(() => this.draw())
    this.observer.observe(this.scroll)
  }

  show(data) {
    if (data.run !== this.data?.run || data.run === null) this.focus = null
    super.show(data)
  }

  remove() {
    this.observer.disconnect()
  }

  press(event) {
    event.stopPropagation() // the node would be dragged
    this.point(event)
  }

  say(status) {
    super.say(status)
    this.canvas.setAttribute("aria-label", `${this.title}: ${status}`)
  }

  /** Size of the painted part in CSS pixels, at least so high, and the canvas made to fit; null if it is not visible. */
  fit(leastHeight) {
    const box = this.scroll
    if (!this.open || !box.clientWidth || !box.clientHeight) return null
    const [width, height] = [box.clientWidth, Math.max(box.clientHeight, leastHeight)]
    const sharpness = Math.max(SHARPNESS, globalThis.devicePixelRatio || 1)
    const wanted = [Math.round(width * sharpness), Math.round(height * sharpness)]
    if (this.canvas.width !== wanted[0] || this.canvas.height !== wanted[1]) {
      Object.assign(this.canvas, { width: wanted[0], height: wanted[1] })
      Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` })
    }
    return { width, height }
  }

  /**
   * Texts over the painted part: as elements they stay sharp when the graph is zoomed out.
   * Each { text, x, y: of its middle, ends: whether it ends at x, faint, width: at most }.
   */
  label(texts) {
    const made = texts.map(({ text, x, y, ends = false, faint = false, width = null }) => {
      const label = element("span", `${ends ? "lc-ends" : ""} ${faint ? "lc-faint" : ""}`, text)
      Object.assign(label.style, { left: `${x}px`, top: `${y}px`, maxWidth: width === null ? "" : `${width}px` })
      return label
    })
    this.labels.replaceChildren(...made)
  }

  /** Of the theme, as it is now. */
  colours() {
    const of = (name, otherwise) => getComputedStyle(this.root).getPropertyValue(name).trim() || otherwise
    return {
      subject: of("--lc-subject", "orange"),
      style: of("--lc-style", "blue"),
      other: of("--lc-other", "green"),
      even: of("--border-color", "#666"),
      line: of("--comfy-input-bg", "#222"),
      text: of("--input-text", "#ddd"),
      faint: of("--descrip-text", "#999"),
    }
  }
}
