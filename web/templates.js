// The pack's templates in the order of their names: the server lists them in the order of the disk.

import { app } from "../../scripts/app.js"
import { inOrder } from "./js/templates.js"

app.registerExtension({ name: "loraconductor.Templates", init: () => inOrder(app.api) })
