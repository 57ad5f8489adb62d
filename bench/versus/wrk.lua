-- What wrk measured, as one line of JSON at the end.
function done(summary, latency, requests)
   local errors = summary.errors
   print(string.format(
      '{"done": %d, "failed": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "p999_us": %d}',
      summary.requests,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      summary.duration / 1e6,
      latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
