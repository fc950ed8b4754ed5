// Package archtest holds the tests that keep the architecture what it is said to
// be: who imports whom, what only tests may use, and how long a file may get.
// They read the source of the whole module and run none of it.
package archtest
