package main

import (
	"context"
	"fmt"
	"time"

	"example.com/raftkv"
)

// How long a stopping node may take to find out what its stop means. A person
// who stops a node wants it to stop.
const stopCheckMax = 500 * time.Millisecond

// costOfStopping says what the cluster loses if this member stops now, "" if that
// is nothing or cannot be known. Only a leader knows how many voters can be
// spared, so another member asks it.
func costOfStopping(ctx context.Context, st raftkv.Status) string {
	voters, leaderAddr := 0, ""
	for _, m := range st.Membership.Members {
		if m.Role == raftkv.Voter {
			voters++
		}
		if m.ID == st.Leader {
			leaderAddr = m.Addr
		}
	}
	switch {
	case st.QuorumLost:
		return "a majority of the voters is lost already, and what this member still has goes with it; save it first next time: kvnode recover"
	case st.Role == raftkv.Blank || st.Role == raftkv.Learner:
		return ""
	case voters == 1 && len(st.Membership.Members) == 1:
		return "this is the only member: everything is in memory, and all of it is lost now"
	case voters == 1:
		return "this is the only voter: the cluster stops, and only what its learners have is left, for kvnode recover"
	case st.Leader == 0:
		return "it knows no leader: too few of the voters may be running, and what this one has, perhaps the last to have it, is lost now"
	case leaderAddr == "":
		return ""
	}
	spare := st.SpareVoters
	if st.Leader != st.ID {
		leader, _ := askStatus(ctx, leaderAddr, stopCheckMax)
		if leader == nil || leader.SpareVoters == nil {
			return ""
		}
		spare = int(leader.GetSpareVoters())
	}
	if spare != 0 {
		return ""
	}
	return fmt.Sprintf("without this voter too few of the %d are left for a majority: the cluster stops; as everything is in memory, "+
		"a majority that comes back empty has lost all but what kvnode recover saves from a survivor", voters)
}

// warn says what a stop costs while there is still somebody to ask, and reports
// whether the person has become impatient meanwhile.
func (s *supervisor) warn(ctx context.Context, costOfStopping func(context.Context) string) (impatient bool) {
	ctx, cancel := context.WithTimeout(ctx, stopCheckMax)
	defer cancel()
	cost := make(chan string, 1) // so that the goroutine, which ends with ctx, never waits for a reader
	go func() { cost <- costOfStopping(ctx) }()
	select {
	case text := <-cost:
		if text != "" {
			s.say("warning: %s", text)
		}
	case <-ctx.Done():
	case <-s.signalc:
		return true
	}
	return false
}
