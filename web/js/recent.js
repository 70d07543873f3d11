// Runs and prompts whose events are still coming in: the newest few.

const KEPT = 16

export class Recent extends Map {
  set(key, value) {
    this.delete(key)
    super.set(key, value)
    if (this.size > KEPT) this.delete(this.keys().next().value)
    return this
  }
}

/** Prompt -> the workflow it was made from, as far as our events have told. */
export const workflowOfPrompt = new Recent()
