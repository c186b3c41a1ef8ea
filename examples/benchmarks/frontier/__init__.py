"""What each method buys per nat: gold and proxy against KL, from one policy, one proxy and equal token passes."""
