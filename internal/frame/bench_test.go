package frame

import (
	"context"
	"net"
	"testing"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"example.com/raftkv/internal/checksum"
	kvpb "example.com/raftkv/proto/raftkv/v1"
)

// The benchmarks compare the codec with generated code on what is sent most.

var shapes = []struct {
	name string
	m    *pb.Message
}{
	{"heartbeat", heartbeat()}, {"appresp", appResp()}, {"app=1x128B", app(1, 128)}, {"app=1x1KiB", app(1, 1<<10)},
	{"app=1x10KiB", app(1, 10<<10)}, {"app=64x128B", app(64, 128)}, {"app=1x1MiB", app(1, 1<<20)},
}

// A coder sends and receives frames of one message.
type coder struct {
	name   string
	option grpc.CallOption
	send   func(m *pb.Message) any // what is handed to gRPC
	room   func() any              // what gRPC fills
	open   func(v any) error
}

var coders = []coder{
	{"proto", grpc.EmptyCallOption{}, func(m *pb.Message) any {
		data, err := proto.Marshal(m)
		if err != nil {
			panic(err)
		}
		r := &kvpb.MessagesRequest{Messages: [][]byte{data}}
		r.Crc = checksum.Of(data) // as good as the whole frame's, for a benchmark
		return r
	}, func() any { return new(kvpb.MessagesRequest) }, func(v any) error {
		r := v.(*kvpb.MessagesRequest)
		if checksum.Of(r.Messages[0]) != r.Crc {
			panic("damaged")
		}
		return proto.Unmarshal(r.Messages[0], new(pb.Message))
	}},
	{"frame", Option(), func(m *pb.Message) any { return &Frame{Messages: []*pb.Message{m}} },
		func() any { return new(Bytes) }, func(v any) error {
			_, err := Decode(*v.(*Bytes))
			return err
		}},
}

func eachCoder(b *testing.B, f func(b *testing.B, c coder, codec encoding.CodecV2, m *pb.Message)) {
	for _, s := range shapes {
		for _, c := range coders {
			b.Run(s.name+"/codec="+c.name, func(b *testing.B) {
				codec := encoding.GetCodecV2(name)
				b.ReportAllocs()
				f(b, c, codec, s.m)
			})
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	eachCoder(b, func(b *testing.B, c coder, codec encoding.CodecV2, m *pb.Message) {
		for b.Loop() {
			buffers, err := codec.Marshal(c.send(m))
			if err != nil {
				b.Fatal(err)
			}
			buffers.Free()
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	eachCoder(b, func(b *testing.B, c coder, codec encoding.CodecV2, m *pb.Message) {
		buffers, err := codec.Marshal(c.send(m))
		if err != nil {
			b.Fatal(err)
		}
		data := mem.BufferSlice{mem.SliceBuffer(buffers.Materialize())} // in one piece, as gRPC has read it
		for b.Loop() {
			v := c.room()
			if err := codec.Unmarshal(data, v); err != nil {
				b.Fatal(err)
			}
			if err := c.open(v); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A sink receives with the coder that the benchmark is about.
type sink struct {
	kvpb.UnimplementedPeerServiceServer
	coder coder
	got   chan error
}

func (s *sink) Messages(stream grpc.BidiStreamingServer[kvpb.MessagesRequest, kvpb.MessagesResponse]) error {
	for {
		v := s.coder.room()
		if err := stream.RecvMsg(v); err != nil {
			return err
		}
		s.got <- s.coder.open(v)
	}
}

// BenchmarkStream sends frames over a gRPC stream, 32 of them at once.
func BenchmarkStream(b *testing.B) {
	const window = 32
	eachCoder(b, func(b *testing.B, c coder, _ encoding.CodecV2, m *pb.Message) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		s := &sink{coder: c, got: make(chan error, window)}
		server := grpc.NewServer()
		kvpb.RegisterPeerServiceServer(server, s)
		go func() { _ = server.Serve(l) }() // ends with Stop
		defer server.Stop()
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		stream, err := kvpb.NewPeerServiceClient(conn).Messages(context.Background(), c.option)
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		for b.Loop() {
			if n++; n > window {
				if err := <-s.got; err != nil {
					b.Fatal(err)
				}
			}
			if err := stream.SendMsg(c.send(m)); err != nil {
				b.Fatal(err)
			}
		}
		for range min(n, window) {
			<-s.got
		}
	})
}
