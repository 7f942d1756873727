-- Makes a lock last, if it still has this holder. Arguments: its key, the holder, milliseconds.
if redis.call('GET', ARGV[1]) == ARGV[2] then
    return redis.call('PEXPIRE', ARGV[1], ARGV[3])
end
return 0
