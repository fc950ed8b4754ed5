// Package proto holds the wire API and the log's format; the generated code is
// in raftkv/v1.
package proto

// generate runs buf lint and buf generate; its comment says where buf comes from.
//
//go:generate go -C ../internal/tools run ./generate ../..
