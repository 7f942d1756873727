-- Gives a lock back, if it is still ours. ARGV: the key, the holder.
if redis.call('GET', ARGV[1]) == ARGV[2] then
  redis.call('DEL', ARGV[1])
end
return 'ok'
