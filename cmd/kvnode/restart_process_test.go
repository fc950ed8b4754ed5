package main

import "time"

// A process that restarts is a voter again within this time, with nobody's
// help.
const healingMax = 10 * time.Second
