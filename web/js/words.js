// The panels' own words. English stands in the code; locales/<language>/main.json has it in other languages.

import { app } from "../../../scripts/app.js"
import { api } from "../../../scripts/api.js"

let languages = {}

/** Ask the server for all languages, so that the page may change its own at any time. */
export async function fetchWords() {
  try {
    const answer = await api.fetchApi("/i18n")
    if (answer.ok) languages = await answer.json()
  } catch (error) {
    console.warn("LoRA Conductor: no translations, so its panels speak English.", error)
  }
}

/** An English text in the page's language, where there is one, with the values in place of {names}. */
export function inWords(english, values = {}) {
  const language = app.extensionManager?.setting?.get("Comfy.Locale")
  const text = languages[language]?.loraConductor?.panels?.[english] ?? english
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name])
}
