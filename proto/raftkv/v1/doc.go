// Package raftkvv1 is the wire API of raftkv, the format of its log and of its
// snapshots. Everything else in it is generated from the .proto files.
package raftkvv1
