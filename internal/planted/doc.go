// Package planted proves that the simulator bites: it plants bugs, one at a time,
// in a copy of the code that only the compiler sees, and wants each to be caught.
//
// What is planted are the mistakes that implementations of Raft have really made
// and that the promises of the README exclude. The shipped code is never touched
// and has no hook for it: go build -overlay puts an edited copy of a file in the
// place of the original.
//
//	go test ./internal/planted -planted.count 99 -timeout 0 -v   # all of them
//	go test ./internal/planted -planted.run vote -v              # those with vote in their name
//
// Without a flag it only checks that every bug can still be planted.
package planted
