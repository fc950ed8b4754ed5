package main

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/reflection"
)

// reflect lets clients without our stubs, such as grpcurl, find the services.
func reflect(s *grpc.Server) { reflection.Register(s) }
