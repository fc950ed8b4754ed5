//go:build race

package raftkv

const raceEnabled = true
