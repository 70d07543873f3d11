// What is still being heard of, such as runs and prompts: the newest few.

const KEPT = 16

export class Recent extends Map {
  set(key, value) {
    this.delete(key)
    super.set(key, value)
    if (this.size > KEPT) this.delete(this.keys().next().value)
    return this
  }
}
