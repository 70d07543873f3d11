// LoRA Conductor's blind vote on Measure My Pair: people, not cosines, say which picture is better.

import { KeptWidgets } from "./js/kept_widgets.js"
import { addPanel } from "./js/run_events.js"
import { Vote } from "./js/vote.js"
import { VoteView } from "./js/vote_view.js"

const NODES = ["MeasureMyPair"]

addPanel({
  kept: new KeptWidgets({
    name: "pair_vote",
    makeView: (onResize, onChange) => new VoteView(onResize, onChange),
    ofStored: Vote.ofStored,
  }),
  nodes: NODES,
  done: {
    nodes: NODES,
    read: ({ ballot }, prompt) => Vote.ofBallot(ballot?.[0], prompt),
  },
})
