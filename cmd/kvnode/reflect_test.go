package main

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// A stranger is a client that knows of a server only what reflection tells.
type stranger struct {
	conn  *grpc.ClientConn
	files *protoregistry.Files
}

func newStranger(ctx context.Context, t *testing.T, addr string) *stranger {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	set := new(descriptorpb.FileDescriptorSet)
	seen := make(map[string]bool)
	for _, symbol := range []string{"raftkv.v1.KVService", "raftkv.v1.ClusterService"} {
		req := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: symbol}}
		if err := s.Send(req); err != nil {
			t.Fatal(err)
		}
		resp, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, data := range resp.GetFileDescriptorResponse().GetFileDescriptorProto() {
			file := new(descriptorpb.FileDescriptorProto)
			if err := proto.Unmarshal(data, file); err != nil {
				t.Fatal(err)
			}
			if !seen[file.GetName()] {
				seen[file.GetName()] = true
				set.File = append(set.File, file)
			}
		}
	}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	return &stranger{conn, files}
}

// call makes a unary call with JSON in and out.
func (s *stranger) call(ctx context.Context, service, method, in string) (string, error) {
	d, err := s.files.FindDescriptorByName(protoreflect.FullName("raftkv.v1." + service))
	if err != nil {
		return "", err
	}
	m := d.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
	req, resp := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if err := protojson.Unmarshal([]byte(in), req); err != nil {
		return "", err
	}
	if err := s.conn.Invoke(ctx, fmt.Sprintf("/raftkv.v1.%s/%s", service, method), req, resp); err != nil {
		return "", err
	}
	return protojson.MarshalOptions{}.Format(resp), nil
}

// TestSeedSequenceByReflection does what the seed's script does with grpcurl.
func TestSeedSequenceByReflection(t *testing.T) {
	p := startProcesses(t, 3)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	by := make(map[uint64]*stranger)
	for id, addr := range p.addrs {
		by[id] = newStranger(ctx, t, addr)
	}
	call := func(id uint64, service, method, in string) string {
		t.Helper()
		out, err := by[id].call(ctx, service, method, in)
		if err != nil {
			t.Fatalf("%s on member %d: %v", method, id, err)
		}
		return out
	}
	call(1, "ClusterService", "Init", `{}`)
	for id := uint64(2); id <= 3; id++ {
		call(1, "ClusterService", "AddLearner", fmt.Sprintf(`{"id": %d, "addr": %q}`, id, p.addrs[id]))
	}
	call(1, "ClusterService", "ChangeMembership", `{"voters": [1, 2, 3]}`)
	call(2, "KVService", "Put", `{"key": "Zm9v", "value": "YmFy"}`)
	for id := range by {
		var got struct{ Kv struct{ Value string } }
		if err := json.Unmarshal([]byte(call(id, "KVService", "Get", `{"key": "Zm9v"}`)), &got); err != nil || got.Kv.Value != "YmFy" {
			t.Errorf("get on member %d: %+v, %v", id, got, err)
		}
	}
	call(3, "ClusterService", "Status", `{}`)
}
