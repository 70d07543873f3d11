// Templates by number, SDXL first, however the server came upon them; other packs' lists are left as they are.

const PACK = decodeURIComponent(/\/extensions\/([^/]+)\//.exec(import.meta.url)?.[1] ?? "")

/** Lets the page's list of templates have this pack's in order. */
export function inOrder(api) {
  const list = api?.getWorkflowTemplates
  if (typeof list !== "function") return // a page that asks in another way: its own order
  api.getWorkflowTemplates = async function (...given) {
    const all = await list.apply(this, given)
    const ours = all?.[PACK]
    return Array.isArray(ours) ? { ...all, [PACK]: [...ours].sort() } : all
  }
}
