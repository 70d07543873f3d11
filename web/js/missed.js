// What nodes said while the page was not connected: the server's history has it.

import { api } from "../../../scripts/api.js"

/** Give each output of a prompt to `onExecuted`, as if its event had come in; none if it is still running. */
export async function catchUpOn(prompt_id, onExecuted) {
  if (!prompt_id) return
  const answer = await api.fetchApi(`/history/${prompt_id}`)
  if (!answer.ok) return
  const outputs = (await answer.json())[prompt_id]?.outputs ?? {}
  for (const [node, output] of Object.entries(outputs)) onExecuted({ detail: { prompt_id, node, output } })
}
